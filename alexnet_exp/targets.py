"""Import and build classes named in a configuration (`_target_`), and check which ones a checkpoint may name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from alexnet_exp.errors import UserError, nearest

# Allowed in checkpoints without trust=, together with torch's optimizers: the classes that conf/ ships. Listed by name,
# because constructing other classes of this package locks files or starts processes.
TRUSTED = (
    "alexnet_exp.data.CIFAR10",
    "alexnet_exp.data.Digits",
    "alexnet_exp.data.Folder",
    "alexnet_exp.data.ImageNet",
    "alexnet_exp.data.MNIST",
    "alexnet_exp.data.Streaming",
    "alexnet_exp.models.AlexNet",
    "alexnet_exp.models.resnet18",
    "alexnet_exp.training.lars.LARS",
    "alexnet_exp.training.paper_sgd.PaperSGD",
    "torch.optim.Adam",
    "torch.optim.AdamW",
    "torch.optim.SGD",
)

# Moved modules: users' settings and checkpoints contain the old names.
_MOVED = {
    "alexnet_exp.training.lars": "alexnet_exp.training.optim.lars",
    "alexnet_exp.training.paper_sgd": "alexnet_exp.training.optim.paper_sgd",
}

_UNFIT = {
    "LBFGS": "evaluates each batch several times",
    "SparseAdam": "only supports sparse gradients",
    "Muon": "only supports matrices, not the weights of convolutions",
}


def torch_optimizer(path: str) -> Any:
    """Import an optimizer from torch.optim.

    Args:
        path: 'torch.optim.RMSprop'.

    Raises:
        UserError: If there is no such class, or it cannot train these networks.
    """
    import torch

    name = path.rpartition(".")[2]
    if not is_torch_optimizer(path):
        known = [k for k in vars(torch.optim) if is_torch_optimizer(f"torch.optim.{k}")]
        raise UserError(f"optimizer._target_={path} is not an optimizer of torch.{nearest(name, known, 1)}")
    if name in _UNFIT:
        raise UserError(f"optimizer._target_={path} cannot train here: it {_UNFIT[name]}.")
    return locate(path)


def is_torch_optimizer(path: str) -> bool:
    """Return whether a dotted path names a subclass of torch.optim.Optimizer inside torch.optim."""
    if not path.startswith("torch.optim."):
        return False
    try:
        found = locate(path)
    except UserError:
        return False
    import torch

    base = torch.optim.Optimizer
    # By where it is defined: modules of torch.optim also contain names that they import.
    inside = f"{getattr(found, '__module__', '')}.".startswith("torch.optim.")
    return inside and inspect.isclass(found) and issubclass(found, base) and found is not base


def locate(path: str) -> Any:
    """Import the object at a dotted path.

    Raises:
        UserError: If there is no such module or attribute.
    """
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(importlib.import_module(_MOVED.get(module, module)), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the latter two: 'X' and '.x.X'
        raise UserError(f"_target_: {path} cannot be imported ({error}).") from error


def build(config: Mapping[str, Any], **arguments: Any) -> Any:
    """Call the target of `config` with its other keys and `arguments`.

    Args:
        config: Plain values with `_target_`; nested targets are not built.
        arguments: More arguments for the target; they override the keys of `config`.

    Raises:
        UserError: If the target is missing, or does not accept one of the keys.
    """
    keys = {str(k): v for k, v in config.items() if not str(k).startswith("_")} | arguments
    if "_target_" not in config:
        raise UserError(f"_target_ is missing beside {', '.join(keys) or 'nothing'}: set it to a class.")
    target = locate(config["_target_"])
    # Bound before the call, so that a TypeError from inside the target keeps its traceback.
    try:
        inspect.signature(target).bind(**keys)
    except TypeError as error:
        raise UserError(f"{config['_target_']}: {error}") from error
    return target(**keys)


def check_trust(config: Any, trust: Iterable[str] = (), where: str = "the checkpoint's config") -> None:
    """Reject a configuration from a checkpoint that names a class outside the allow-list.

    Args:
        config: Nested plain values.
        trust: Packages from the command line; never read from the checkpoint.
        where: Key of `config`, for the message.

    Raises:
        UserError: Names the key and the target.
    """
    if isinstance(config, Mapping):
        target = config.get("_target_")
        if target is not None and not _allowed(target, trust):
            package = str(target).split(".")[0]
            raise UserError(
                f"{where} names {target!r}, which is not part of this package; if you trust it, set trust=[{package}]."
            )
        for key, value in config.items():
            check_trust(value, trust, f"{where}.{key}")
    elif isinstance(config, list | tuple):
        for i, value in enumerate(config):
            check_trust(value, trust, f"{where}[{i}]")


def _allowed(target: Any, trust: Iterable[str]) -> bool:
    if not isinstance(target, str):
        return False
    if target in TRUSTED or is_torch_optimizer(target):
        return True
    package = next((name for name in trust if name and target.startswith(f"{name}.")), None)
    # locate imports the module, and so runs its code: only in packages that the user trusts.
    return package is not None and _defined_in(locate(target), package)


def _defined_in(found: Any, package: str) -> bool:
    """Return whether a class or function is defined in a package, not just imported there, such as `os.system`."""
    home = getattr(found, "__module__", None)
    own = isinstance(home, str) and (home == package or home.startswith(f"{package}."))
    return own and (inspect.isclass(found) or inspect.isfunction(found))
