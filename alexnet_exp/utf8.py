"""UTF-8 whatever the locale says: file and class names may be in any language, and W&B takes no others."""

from __future__ import annotations

import os
import sys


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode, where its locale has another encoding (LC_ALL=C, say)."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
