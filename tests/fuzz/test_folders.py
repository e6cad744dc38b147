"""Random trees of folders, links and files: splits of a data set, or a one-line error."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alexnet_exp.data.datasets.folder import scan
from alexnet_exp.errors import UserError
from tests.fuzz.refusal import check_sentence

NAMES = st.one_of(
    st.sampled_from(
        ("train", "val", "test", "cat", "dog", ".hidden", "<script>", "größe", "a b", "a=b,c", "Train")
    ),
    st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6).filter(
        lambda n: n not in (".", "..")
    ),
)
FILES = st.sampled_from(("0.jpg", "1.PNG", "2.jpeg", ".0.jpg", "notes.txt", "3.jpg.bak", "noending", "4.gif"))
PATHS = st.tuples(st.lists(NAMES, max_size=3), FILES)
LINKS = st.tuples(
    st.lists(NAMES, max_size=2), NAMES, st.sampled_from((".", "..", "/", "/nowhere", "cat", "../train"))
)


def grown(root: Path, files: list[tuple[list[str], str]], links: list[tuple[list[str], str, str]]) -> None:
    """Create a tree, or as much of it as the file system allows."""
    for folders, name in files:
        try:
            path = root.joinpath(*folders)
            path.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"")
        except (OSError, UnicodeEncodeError):
            continue
    for folders, name, target in links:
        try:
            path = root.joinpath(*folders)
            path.mkdir(parents=True, exist_ok=True)
            os.symlink(target, path / name)
        except (OSError, UnicodeEncodeError):
            continue


@given(
    files=st.lists(PATHS, max_size=12),
    links=st.lists(LINKS, max_size=2),
    val_fraction=st.sampled_from((None, 0.0, 0.25, 0.99)),
)
@example(files=[], links=[([], "train", "."), ([], "round", "round")], val_fraction=None)
def test_a_tree_is_a_data_set_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, files: list, links: list, val_fraction: float | None
) -> None:
    root = tmp_path_factory.getbasetemp() / "tree"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    grown(root, files, links)
    try:
        found = scan(str(root), val_fraction)
    except UserError as error:
        check_sentence(error)
        return
    everything: list[str] = []
    for source in found.values():
        assert len(source) == len(source.labels) > 0
        assert source.classes == tuple(sorted(source.classes)) and len(source.classes) > 1
        for path, label in zip(source.paths, source.labels.tolist(), strict=True):
            assert os.path.isfile(path) and os.path.realpath(path).startswith(os.path.realpath(root) + os.sep)
            assert f"{os.sep}{source.classes[label]}{os.sep}" in path
            assert not os.path.basename(path).startswith(".")
        everything += source.paths
    assert len(everything) == len(set(everything)), "an image is in two splits"
