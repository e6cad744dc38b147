"""What torch.compile needs on this machine besides torch."""

from __future__ import annotations

import os
import shutil
import sys


def missing_compiler(device: str) -> str | None:
    """Return in a few words the compiler that torch.compile calls and that is not here; None if it is.

    Args:
        device: 'cuda', where Triton builds its launchers in C, or 'cpu', where inductor writes C++; others need none.

    Source: triton/runtime/build.py, torch/_inductor/config.py (cpp.cxx)
    """
    if device == "cuda":
        names, kind = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"], "C"
    elif device == "cpu":
        names, kind = [os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")], "C++"
    else:
        return None
    return None if any(map(shutil.which, names)) else f"a {kind} compiler ({' or '.join(names)})"
