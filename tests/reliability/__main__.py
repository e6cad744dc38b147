"""`python -m tests.reliability` writes docs/reliability.md."""

from __future__ import annotations

from tests.reliability.page import PAGE, page

PAGE.write_text(page(), encoding="utf-8")
