"""The reference laboratory for AlexNet-class image classifiers.

Everything here loads when first used: `import alexnet_exp` itself imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alexnet_exp.version import __version__

__all__ = ["__version__", "create_model", "list_models", "load_classifier"]

if TYPE_CHECKING:
    from alexnet_exp.inference import load_classifier
    from alexnet_exp.zoo import create_model, list_models


def __getattr__(name: str) -> Any:
    if name in ("create_model", "list_models"):
        from alexnet_exp import zoo

        return getattr(zoo, name)
    if name == "load_classifier":
        from alexnet_exp.inference import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
