"""The C or C++ compiler that torch.compile calls."""

from __future__ import annotations

import os
import shutil
import sys


def missing_compiler(device: str) -> str | None:
    """Describe the compiler that torch.compile needs and cannot find; None if nothing is missing.

    Args:
        device: 'cuda' (Triton builds its launchers in C) or 'cpu' (Inductor emits C++); others need no compiler.

    Source: triton/runtime/build.py, torch/_inductor/config.py (cpp.cxx)
    """
    if device == "cuda":
        names, kind = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"], "C"
    elif device == "cpu":
        names, kind = [os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")], "C++"
    else:
        return None
    return None if any(map(shutil.which, names)) else f"a {kind} compiler ({' or '.join(names)})"
