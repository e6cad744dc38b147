"""ImageNet's layouts, with a few coloured images under real WordNet ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alexnet_exp.data import ImageNet
from alexnet_exp.errors import UserError
from tests.data.makers import write_folder

WNIDS = ("n01440764", "n02119789", "n02100735")
# As published: ids in the devkit's own order, which is not that of the WordNet ids, and inner nodes after the leaves.
IDS = {1: "n02119789", 2: "n02100735", 3: "n01440764"}
TRUTH = [3, 1, 2, 2]


def made(root: Path, flat: bool) -> Path:
    write_folder(root, {f"train/{wnid}": 2 for wnid in WNIDS}, extension="JPEG")
    if flat:
        write_folder(root, {"val": len(TRUTH)}, extension="JPEG")
        for number in range(len(TRUTH)):
            (root / f"val/{number}.JPEG").rename(root / f"val/ILSVRC2012_val_{number + 1:08d}.JPEG")
    else:
        write_folder(root, {f"val/{wnid}": 1 for wnid in WNIDS}, extension="JPEG")
    return root


def data(root: Path, **options: object) -> ImageNet:
    settings = {"batch_size": 2, "image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "num_workers": 0}
    loaded = ImageNet(str(root), **settings, **options)
    loaded.setup()
    return loaded


def validation_labels(root: Path) -> dict[str, str]:
    """Return the class that every validation image is loaded with, by its file's name."""
    source = data(root).sources["val"]
    assert source.classes == tuple(sorted(WNIDS))
    return {
        Path(source.image_name(i)).stem: source.classes[label]
        for i, label in enumerate(source.labels.tolist())
    }


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return made(tmp_path, flat=True)


OFFICIAL = {f"ILSVRC2012_val_{n:08d}": IDS[line] for n, line in enumerate(TRUTH, start=1)}


def test_class_folders_are_numbered_by_wordnet_id(tmp_path: Path):
    made(tmp_path, flat=False)
    (tmp_path / "val/stray.JPEG").write_bytes(b"")  # beside them, as left behind by an unpacked archive
    loaded = data(tmp_path)
    assert loaded.classes == tuple(sorted(WNIDS))
    assert loaded.sources["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert loaded.sources["val"].labels.tolist() == [0, 1, 2]
    assert "test" not in loaded.sources


def test_a_flat_validation_folder_takes_its_labels_from_kaggle_s_table(flat: Path):
    rows = [f"{name},{wnid} 1 2 3 4 {WNIDS[0]} 1 2 3 4" for name, wnid in OFFICIAL.items()]
    (flat / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))
    assert validation_labels(flat) == OFFICIAL


def write_devkit(root: Path) -> None:
    """Write the ground truth and meta.mat with scipy, in the shape of the published file."""
    io = pytest.importorskip("scipy.io", reason="scipy is not installed, which reads the devkit")
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{i}\n" for i in TRUTH))
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O"),
             ("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O")]  # fmt: skip
    leaves = [(i, wnid, "a name", "", 0, np.zeros(0), 0, 1300) for i, wnid in IDS.items()]
    inner = [(4, "n02084071", "dog", "", 2, np.array([1, 2]), 1, 0)]
    io.savemat(folder / "meta.mat", {"synsets": np.array([*leaves, *inner], dtype=kinds)})


def test_a_flat_validation_folder_takes_its_labels_from_the_devkit(flat: Path):
    write_devkit(flat)
    assert validation_labels(flat) == OFFICIAL


def test_an_image_without_a_label_is_named(flat: Path):
    (flat / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nsomething,n01440764 1 2 3 4\n")
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000001\.JPEG has no label"):
        data(flat)


def test_a_flat_validation_folder_without_labels_is_refused(flat: Path):
    with pytest.raises(
        UserError, match=r"neither class folders nor labels: unpack ILSVRC2012_devkit_t12\.tar\.gz"
    ):
        data(flat)


def test_an_unreadable_label_file_is_named(flat: Path):
    (flat / "LOC_val_solution.csv").write_text("nonsense\n1\n")
    with pytest.raises(UserError, match=r"LOC_val_solution\.csv cannot be read \(KeyError"):
        data(flat)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_split_is_named_with_its_archive(split: str, tmp_path: Path):
    (tmp_path / ("val" if split == "train" else "train")).mkdir()
    with pytest.raises(UserError, match=rf"{split} is missing: get ILSVRC2012_img_{split}\.tar"):
        data(tmp_path)


def test_other_class_folders_point_to_data_folder(tmp_path: Path):
    write_folder(tmp_path, {"train/cat": 1, "train/dog": 1, "val/cat": 1})
    with pytest.raises(UserError, match="use data=folder for other class folders"):
        data(tmp_path)


def test_all_thousand_classes_have_torchvision_s_names(tmp_path: Path):
    wnids = [WNIDS[0], *(f"n{2_000_000 + 10 * i:08d}" for i in range(998)), "n15075141"]
    write_folder(tmp_path, {"picture": 1}, extension="JPEG")
    for split in ("train", "val"):
        for wnid in wnids:
            (tmp_path / split / wnid).mkdir(parents=True)
            (tmp_path / split / wnid / "0.JPEG").hardlink_to(tmp_path / "picture" / "0.JPEG")
    classes = data(tmp_path).classes
    assert (classes[0], classes[207], classes[281], classes[999]) == (
        "tench", "golden retriever", "tabby", "toilet tissue"
    )  # fmt: skip
    assert len(set(classes)) == 1000
