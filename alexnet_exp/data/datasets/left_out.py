"""Report skipped files: counted by extension and summarised in one line, so that no image is ignored silently."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from alexnet_exp.errors import printable

# Files of operating systems and tools, and text files: never reported, since nobody expects them to be images.
JUNK = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "readme", "license", "makefile"))
JUNK_FOLDERS = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"))
TEXT = frozenset(
    ("txt", "md", "rst", "csv", "tsv", "json", "jsonl", "xml", "yaml", "yml", "toml", "html", "htm", "log", "ini",
     "cfg", "aae", "xmp", "url", "lnk", "py", "ipynb", "sh", "md5", "sha256")
)  # fmt: skip
_NAMED = 5  # extensions and folders listed by name


class LeftOut:
    """Count the skipped files below a folder.

    Args:
        root: Folder that reported names are relative to.
        read: Supported extensions, without the dot.
    """

    def __init__(self, root: str, read: Sequence[str]) -> None:
        self.root, self.read = root, read
        self.endings: Counter[str] = Counter()
        self.loose = 0  # images outside the class folders
        self.folders: list[str] = []  # of no known split
        self._unread = self._first_loose = ""  # an example of each

    def file(self, path: str) -> None:
        """Count a file with an unsupported extension."""
        name = os.path.basename(path)
        ending = os.path.splitext(name)[1].lower()
        if name.startswith(".") or name.lower() in JUNK or ending[1:] in TEXT:
            return
        self._unread = self._unread or path
        self.endings[ending] += 1

    def image(self, path: str) -> None:
        """Count an image outside the class folders."""
        self._first_loose = self._first_loose or path
        self.loose += 1

    def text(self) -> str:
        """Summarise what was skipped; empty if nothing was."""
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
