"""Networks that ship with this package, trained: NAME.safetensors, as `export format=safetensors` writes them."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent


def shipped() -> list[str]:
    """List their names."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def shipped_file(name: str | os.PathLike[str]) -> Path | None:
    """Return the file of one; None where there is none of this name."""
    return FOLDER / f"{name}.safetensors" if os.fspath(name) in shipped() else None
