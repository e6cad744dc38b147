"""A checkpoint and its data are matched by identity: every cell of the table in docs/checkpoints.md, and its cases."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from alexnet_exp.cli import main
from alexnet_exp.data import folder
from alexnet_exp.errors import UserError
from alexnet_exp.inference import load_classifier
from alexnet_exp.runs.evaluate_members import open_members
from alexnet_exp.runs.export_check import images_to_check
from alexnet_exp.runs.figures_subject import open_subject
from alexnet_exp.runs.fit import assemble, fit_to_data, prepare_data, start_point
from alexnet_exp.runs.train import train
from alexnet_exp.tracking.run_directory import RunDirectory
from tests.data.makers import write_folder
from tests.training.small_runs import NARROW, checkpoint, resume, rows, same, settings, train_until

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
BASE = [
    "model=alexnet_cifar", *NARROW, "data=folder", "data.batch_size=12", "data.cache=off", "data.num_workers=0",
    "augment=none", "optimizer=adam", "optimizer.lr=0.001", "scheduler=none", "trainer=cpu", "trainer.max_epochs=2",
    "logger=csv", "callbacks.progress_bar.enabled=false", "callbacks.model_summary.enabled=false",
]  # fmt: skip
CLASSES = ("ant", "bee", "cat")


def configured(*overrides: object) -> tuple[dict[str, Any], list[str]]:
    return settings(*map(str, overrides), base=BASE)


def trained(run_dir: Path, root: Path, *overrides: object) -> Path:
    config, typed = configured(f"data.root={root}", *overrides)
    train(config, typed, run_dir, "python train.py")
    return run_dir


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with splits and one without, and a run on each."""
    here = tmp_path_factory.mktemp("identity")
    counts = {f"{split}/{name}": n for split, n in (("train", 8), ("val", 4), ("test", 4)) for name in CLASSES}
    write_folder(here / "base", counts, extension="png")
    write_folder(here / "flat", dict.fromkeys(CLASSES, 10), extension="png")
    trained(here / "run", here / "base")
    trained(here / "flat run", here / "flat", "data.val_fraction=0.3", "test=false")
    _reorder(here / "run", here / "reordered run")
    return here


def _reorder(run: Path, other: Path) -> None:
    """Write a run again as if its classes had been numbered the other way round."""
    shutil.copytree(run, other)
    for file in (other / "checkpoints").glob("*.ckpt"):
        content = torch.load(file, weights_only=True)
        content["classes"].reverse()
        for name in ("weight", "bias"):
            key = f"model.classifier.fc8.{name}"
            content["state_dict"][key] = content["state_dict"][key].flip(0)
        torch.save(content, file)


# -------------------------------------------------------------------------------------------- the table


def _renamed(root: Path) -> None:
    for path in root.glob("*/ant"):
        path.rename(path.with_name("zebra"))


def _one_more(root: Path) -> None:
    for path in root.glob("*/ant"):
        shutil.copytree(path, path.with_name("dog"))


def _one_fewer(root: Path) -> None:
    for path in root.glob("*/cat"):
        shutil.rmtree(path)


def _added(root: Path) -> None:
    for path in root.glob("*/ant/0.png"):
        for number in range(7):  # a batch more
            shutil.copy(path, path.with_name(f"new{number}.png"))


def _removed(root: Path) -> None:
    for path in root.glob("*/*/1.png"):
        path.unlink()


def _other_bytes(root: Path) -> None:
    for path in root.glob("*/ant/0.png"):
        Image.new("RGB", (40, 32), "red").save(path)


def _into_val(root: Path) -> None:
    """Add one file that changes what validates."""
    before = folder.load(str(root), "val", 0.3).paths
    for number in range(100):
        new = root / "ant" / f"new{number}.png"
        shutil.copy(root / "ant" / "0.png", new)
        if folder.load(str(root), "val", 0.3).paths != before:
            return
        new.unlink()


CHANGES: dict[str, Callable[[Path], object]] = {
    "same": lambda root: None,
    "a class renamed": _renamed,
    "classes in another order": lambda root: None,  # the run is another one
    "one class more": _one_more,
    "one class fewer": _one_fewer,
    "files added": _added,
    "files removed": _removed,
    "same names, other bytes": _other_bytes,
    "one file more under `val_fraction`": _into_val,
}


@pytest.fixture(scope="module")
def changed(made: Path) -> dict[str, tuple[Path, Path]]:
    """Of every change: the run, and the folder as it is afterwards, under another name."""
    found = {}
    for number, (name, change) in enumerate(CHANGES.items()):
        flat = "val_fraction" in name
        root = made / f"copy {number}"
        shutil.copytree(made / ("flat" if flat else "base"), root)
        change(root)
        run = "reordered run" if "order" in name else "flat run" if flat else "run"
        found[name] = (made / run, root)
    return found


def _assembled(here: Path, root: Path, *overrides: object) -> Any:
    """Put a training together up to its first step."""
    config, typed = configured(f"data.root='{root}'", *overrides)
    data = prepare_data(config)
    fit_to_data(config, data, typed)
    fit = assemble(config, data, here, [], Console(quiet=True))
    start_point(fit, here)
    return fit


def _resume(here: Path, run: Path, root: Path) -> None:
    shutil.copytree(run, here / "again")
    cut = ["data.val_fraction=0.3"] if "flat" in run.name else []
    _assembled(here / "again", root, f"resume='{here / 'again'}'", "trainer.max_epochs=3", *cut)


def _new(key: str) -> Callable[[Path, Path, Path], object]:
    def start(here: Path, run: Path, root: Path) -> None:
        cut = ["data.val_fraction=0.3"] if "flat" in run.name else []
        _assembled(here, root, f"{key}='{run}'", "trainer.max_epochs=3", *cut)

    return start


def _reading(root: Path) -> dict[str, Any]:
    return {
        "data": {"root": str(root)}, "data_dir": {"path": "data", "typed": False}, "trust": [], "batch_size": None,
        "views": None, "split": "val", "device": "cpu",
    }  # fmt: skip


def _best(run: Path) -> str:
    return str(run / "checkpoints" / "best.ckpt")


def _evaluate(here: Path, run: Path, root: Path) -> None:
    (member,) = open_members([_best(run)], _reading(root))
    source = member.data.sources["val"]
    for index in range(len(source)):  # every label names the class whose folder the image lies in
        assert member.classes[source.labels[index]] in source.image_name(index)


def _figures(here: Path, run: Path, root: Path) -> None:
    assert open_subject({**_reading(root), "ckpt": str(run)}).split == "val"


def _predict(here: Path, run: Path, root: Path) -> None:
    (said,) = load_classifier(run, "cpu").predict([next(root.rglob("bee/0.png"))])
    assert said.classes[0] in CLASSES


def _export(here: Path, run: Path, root: Path) -> None:
    loaded = load_classifier(run, "cpu")
    loaded.config["data"]["root"] = str(root)  # what was there has changed
    images, said = images_to_check(loaded, [], "data")
    assert images and "noise" not in said
    if not said.endswith("split"):
        logging.getLogger("alexnet_exp.runs.export").warning(said)


VERBS: dict[str, Callable[[Path, Path, Path], object]] = {
    "resume": _resume, "ckpt": _new("ckpt"), "weights": _new("weights"), "evaluate": _evaluate,
    "predict": _predict, "figures": _figures, "export": _export,
}  # fmt: skip


def table() -> list[tuple[str, str, str]]:
    """Read (change, verb, outcome) of every cell of the page's table."""
    lines = [line.strip("| \n").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line]
    (_, *head), (_, *body) = ["", *lines[0]], lines[1:]
    return [(row[0], verb, cell) for row in body for verb, cell in zip(head, row[1:], strict=True)]


def test_the_table_has_every_change_and_every_verb() -> None:
    assert {(change, verb) for change, verb, _ in table()} == {(c, v) for c in CHANGES for v in VERBS}


@pytest.mark.parametrize(("change", "verb", "expected"), table(), ids=lambda text: text)
def test_a_cell_of_the_table_is_true(
    change: str, verb: str, expected: str, changed: dict[str, tuple[Path, Path]], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run, root = changed[change]
    with caplog.at_level(logging.INFO, "alexnet_exp"):
        try:
            VERBS[verb](tmp_path, run, root)
            refusal = None
        except UserError as error:
            refusal = str(error)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("alexnet_exp")]
    said = [line for line in said if "images" in line or "goes by class name" in line]
    outcome = "refused" if refusal else "said" if said else "runs"
    assert outcome == expected, refusal or said
    assert len(said) == (expected == "said")
    assert "\n" not in (refusal or said or [""])[0]
    if verb != "predict" and ("class more" in change or "class renamed" in change) and verb != "export":
        assert ("dog" if "more" in change else "zebra") in (refusal or said[0])
