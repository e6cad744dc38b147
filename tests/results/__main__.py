"""`python -m tests.results` writes docs/results.md and the 'Measured:' lines of conf/experiment."""

from __future__ import annotations

from tests.results.page import PAGE, headers, page

PAGE.write_text(page(), encoding="utf-8")
for file, text in headers().items():
    file.write_text(text, encoding="utf-8")
