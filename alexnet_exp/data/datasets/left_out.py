"""Files that are not read: counted by their ending and named in one line, so that none goes missing silently."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from alexnet_exp.errors import printable

# What systems and programs leave beside images, and what is text: nobody takes it for an image.
JUNK = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "readme", "license", "makefile"))
JUNK_FOLDERS = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"))
TEXT = frozenset(
    ("txt", "md", "rst", "csv", "tsv", "json", "jsonl", "xml", "yaml", "yml", "toml", "html", "htm", "log", "ini",
     "cfg", "aae", "xmp", "url", "lnk", "py", "ipynb", "sh", "md5", "sha256")
)  # fmt: skip
_NAMED = 5  # endings, and folders


class LeftOut:
    """Counts what is not read below a folder.

    Args:
        root: Names are given relative to it.
        read: Endings of what is read, without the dot.
    """

    def __init__(self, root: str, read: Sequence[str]) -> None:
        self.root, self.read = root, read
        self.endings: Counter[str] = Counter()
        self.loose = 0  # images that lie in no class folder
        self.folders: list[str] = []  # that belong to no split
        self._unread = self._first_loose = ""  # an example of each

    def file(self, path: str) -> None:
        """Count a file whose ending is not that of an image."""
        name = os.path.basename(path)
        ending = os.path.splitext(name)[1].lower()
        if name.startswith(".") or name.lower() in JUNK or ending[1:] in TEXT:
            return
        self._unread = self._unread or path
        self.endings[ending] += 1

    def image(self, path: str) -> None:
        """Count an image that lies in no class folder."""
        self._first_loose = self._first_loose or path
        self.loose += 1

    def text(self) -> str:
        """Say what was counted, or return an empty string."""
        parts = []
        if total := self.endings.total():
            such = f"such as {self._name(self._unread)}"
            read = f"supported: {', '.join(self.read)}"
            parts.append(
                f"{_files(total)} with unsupported endings ({counted(self.endings)}; {such}; {read})"
            )
        if self.loose:
            such = f"such as {self._name(self._first_loose)}"
            parts.append(f"{_files(self.loose, 'image')} outside the class folders ({such})")
        if self.folders:
            more = ", ..." if len(self.folders) > _NAMED else ""
            names = ", ".join(self._name(folder) for folder in self.folders[:_NAMED])
            parts.append(f"{_files(len(self.folders), 'folder')} of no known split ({names}{more})")
        return "; ".join(parts)

    def _name(self, path: str) -> str:
        relative = os.path.relpath(path, self.root)
        return printable(path if relative.startswith(os.pardir) else relative)


def counted(endings: Counter[str]) -> str:
    """Return '60 .heic, 3 .mp4', the most frequent first."""
    named = [f"{n} {printable(ending) or 'without an ending'}" for ending, n in endings.most_common(_NAMED)]
    return ", ".join(named) + (", ..." if len(endings) > _NAMED else "")


def _files(count: int, what: str = "file") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
