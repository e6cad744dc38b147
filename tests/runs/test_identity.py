"""A checkpoint and its data are matched by identity: every cell of the table in docs/checkpoints.md, and its cases."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from alexnet_exp.cli import main
from alexnet_exp.data.datasets import folder
from alexnet_exp.data.identity import identify
from alexnet_exp.data.sources import FileSource
from alexnet_exp.errors import UserError
from alexnet_exp.inference import load_classifier
from alexnet_exp.runs.evaluate.members import open_members
from alexnet_exp.runs.evaluate.settings import DataDir
from alexnet_exp.runs.export.check import images_to_check
from alexnet_exp.runs.figures.subject import open_subject
from alexnet_exp.runs.train import fit as heavy
from alexnet_exp.runs.train.command import train
from alexnet_exp.runs.train.fit import assemble, fit_to_data, prepare_data, start_point
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.training.checkpoint.identity import class_changes, kept_rows, match_classes
from tests.data.makers import write_folder
from tests.training.small_runs import NARROW, checkpoint, resume, rows, settings

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
    counts = {
        f"{split}/{name}": n for split, n in (("train", 8), ("val", 4), ("test", 4)) for name in CLASSES
    }
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
    before = folder.scan(str(root), 0.3)["val"].paths
    for number in range(100):
        new = root / "ant" / f"new{number}.png"
        shutil.copy(root / "ant" / "0.png", new)
        if folder.scan(str(root), 0.3)["val"].paths != before:
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


def assembled(here: Path, run: Path, root: Path, **settings: Any) -> Any:
    """Put a training together up to its first step, with the settings of a run on a folder that is another one now."""
    config = {**RunDirectory(run).config(), **settings}
    config["data"]["root"], config["trainer"]["max_epochs"] = str(root), 3
    data = prepare_data(config)
    fit_to_data(config, data, [])
    fit = assemble(config, data, here, [], Console(quiet=True))
    start_point(fit, here)
    return fit


def _resume(here: Path, run: Path, root: Path) -> None:
    shutil.copytree(run, here / "again")
    assembled(here / "again", run, root, resume=str(here / "again"))


def _new(key: str) -> Callable[[Path, Path, Path], object]:
    return lambda here, run, root: assembled(here, run, root, **{key: str(run)})


def _reading(root: Path, **more: str) -> Any:
    return SimpleNamespace(
        data={"root": str(root)}, data_dir=DataDir(path="data", typed=False), trust=[], batch_size=None,
        views=None, split="val", device="cpu", **more,
    )  # fmt: skip


def _best(run: Path) -> str:
    return str(run / "checkpoints" / "best.ckpt")


def _evaluate(here: Path, run: Path, root: Path) -> None:
    (member,) = open_members([_best(run)], _reading(root))
    source = member.data.sources["val"]
    for index in range(len(source)):  # every label names the class whose folder the image lies in
        assert member.classes[source.labels[index]] in source.image_name(index)


def _figures(here: Path, run: Path, root: Path) -> None:
    assert open_subject(_reading(root, ckpt=str(run))).split == "val"


def _predict(here: Path, run: Path, root: Path) -> None:
    (said,) = load_classifier(run, "cpu").predict([next(root.rglob("bee/0.png"))])
    assert said.classes[0] in CLASSES


def _export(here: Path, run: Path, root: Path) -> None:
    loaded = load_classifier(run, "cpu")
    loaded.config["data"]["root"] = str(root)  # what was there has changed
    images, said = images_to_check(loaded, [], "data")
    assert images and "noise" not in said
    if not said.endswith("split"):
        logging.getLogger("alexnet_exp.runs.export.command").warning(said)


VERBS: dict[str, Callable[[Path, Path, Path], object]] = {
    "resume": _resume, "ckpt": _new("ckpt"), "weights": _new("weights"), "evaluate": _evaluate,
    "predict": _predict, "figures": _figures, "export": _export,
}  # fmt: skip


def table() -> list[tuple[str, str, str]]:
    """Read (change, verb, outcome) of every cell of the page's table."""
    lines = [
        line.strip("| \n").split(" | ")
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if "|" in line
    ]
    (_, *head), (_, *body) = ["", *lines[0]], lines[1:]
    return [(row[0], verb, cell) for row in body for verb, cell in zip(head, row[1:], strict=True)]


def test_the_table_has_every_change_and_every_verb() -> None:
    assert {(change, verb) for change, verb, _ in table()} == {(c, v) for c in CHANGES for v in VERBS}


@pytest.mark.parametrize(("change", "verb", "expected"), table(), ids=lambda text: text)
def test_every_cell_of_the_table_is_true(
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
    said = [line for line in said if "images" in line or "is matched by class name" in line]
    outcome = "refused" if refusal else "said" if said else "runs"
    assert outcome == expected, refusal or said
    assert len(said) == (expected == "said")
    assert "\n" not in (refusal or said or [""])[0]
    if verb != "predict" and ("class more" in change or "class renamed" in change) and verb != "export":
        assert ("dog" if "more" in change else "zebra") in (refusal or said[0])


# -------------------------------------------------------------------------------------------- the cases


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_resuming_on_renamed_classes_is_refused_and_leaves_the_run_unchanged(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copytree(made / "base", tmp_path / "base")
    _renamed(tmp_path / "base")
    kept = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file() and f.suffix != ".log"}
    root = f"data.root={tmp_path / 'base'}"
    assert command("train", f"resume={tmp_path / 'run'}", root, "trainer.max_epochs=6") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "was trained on different classes: zebra is new, ant is gone." in line and "set weights=" in line
    assert {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f in kept} == kept


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("data.root=gone", "gone does not exist"),
        ("trainer.limit_val_batches=0.001", "trainer.limit_val_batches"),
        ("trainer.val_check_interval=500", "trainer.val_check_interval"),
    ],
)
def test_resuming_with_invalid_settings_leaves_the_run_unchanged(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str, said: str
) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    kept = {f: f.read_bytes() for f in run.rglob("*") if f.is_file() and f.suffix != ".log"}
    assert command("train", f"resume={run}", mistake, "trainer.max_epochs=6") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert {f: f.read_bytes() for f in run.rglob("*") if f in kept} == kept
    assert command("train", f"resume={run}", "trainer.max_epochs=3") == 0  # no trace of the mistake
    result = RunDirectory(run).result()
    assert result is not None and (result["status"], result["epochs"]) == ("finished", 3)


def test_a_refused_resume_starts_no_wandb_run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, root = (
        shutil.copytree(made / "run", tmp_path / "run"),
        shutil.copytree(made / "base", tmp_path / "base"),
    )
    _renamed(root)
    monkeypatch.setattr(
        "alexnet_exp.runs.train.loggers.make_loggers", lambda *_: pytest.fail("the loggers were made")
    )
    assert command("train", f"resume={run}", f"data.root={root}", "trainer.max_epochs=6") == 1


def test_a_resume_that_fails_before_its_first_step_leaves_the_run_unchanged(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    kept = {f: f.read_bytes() for f in run.rglob("*") if f.is_file() and f.suffix != ".log"}

    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(heavy, "start_point", broken)
    config, typed = configured(f"data.root={made / 'base'}", "trainer.max_epochs=6", f"resume={run}")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        train(config, typed, run, "python train.py")
    assert {f: f.read_bytes() for f in run.rglob("*") if f in kept} == kept
    assert "a fault of ours" in (run / "train.log").read_text()


def test_a_run_stopped_in_mid_epoch_is_not_resumed_on_fewer_files(
    made: Path, stopped: Path, tmp_path: Path
) -> None:
    root, run_dir = tmp_path / "base", tmp_path / "run"
    shutil.copytree(made / "base", root)
    shutil.copytree(stopped, run_dir)
    for path in root.glob("train/*/[1-9].png"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"The images have changed .*: train has 3 images, 21 fewer\. Restore"
    ) as caught:
        resume(run_dir, f"data.root={root}")
    assert f"set ckpt={run_dir}" in str(caught.value)


@pytest.fixture(scope="module")
def stopped(made: Path) -> Path:
    """A run that was ended in the middle of its first epoch."""
    typed = ["data.batch_size=4", "callbacks.checkpoint.every_n_steps=3"]  # 6 batches
    config, overrides = configured(f"data.root={made / 'base'}", *typed)
    config["callbacks"] |= {"stop": {"_target_": "tests.training.small_runs.StopAfter", "steps": 4}}
    with pytest.raises(KeyboardInterrupt):
        train(config, overrides, made / "stopped run", "python train.py")
    return made / "stopped run"


@pytest.mark.parametrize("left", ["[0]", "[0-6]"], ids=["less than it had trained on", "less"])
def test_a_new_run_from_mid_epoch_restarts_that_epoch_on_changed_images(
    made: Path, stopped: Path, tmp_path: Path, left: str
) -> None:
    root, new = tmp_path / "base", tmp_path / "new"
    shutil.copytree(made / "base", root)
    keep = set(root.glob(f"train/*/{left}.png"))
    for path in set(root.glob("train/*/*.png")) - keep:
        path.unlink()
    trained(new, root, "data.batch_size=4", f"ckpt={stopped}", "trainer.max_epochs=1", "test=false")
    steps = -(-len(keep) // 4)
    held = checkpoint(new)
    assert held["global_step"] == 3 + steps and held["splits"]["train"]["count"] == len(keep)
    assert held["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 1
    assert float(held["train_sums"].sum()) == 0.0  # of a finished epoch
    assert [row["epoch"] for row in rows(new) if "val/top1" in row] == [1]
    assert "Restarting the unfinished epoch" in (new / "train.log").read_text()


def test_weights_are_matched_by_class_name_and_logged(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "base"
    shutil.copytree(made / "base", root)
    _renamed(root)
    caplog.set_level(logging.INFO, "alexnet_exp")
    fit = assembled(tmp_path, made / "run", root, weights=str(made / "run"), seed=1)
    there = checkpoint(made / "run", "best")["state_dict"]["model.classifier.fc8.weight"]  # ant, bee, cat
    here = fit.classifier.model.state_dict()["classifier.fc8.weight"]  # bee, cat, zebra
    assert torch.equal(here[:2], there[1:]) and not torch.isclose(here[2], there[0]).any()
    fresh = assembled(tmp_path, made / "run", root, seed=1).classifier.model.state_dict()
    assert torch.equal(here[2], fresh["classifier.fc8.weight"][2])
    said = [record.getMessage() for record in caplog.records if "Weights from" in record.getMessage()]
    assert said[0].endswith(
        "classifier.fc8 is matched by class name (kept bee, cat; new zebra; dropped ant)."
    )


def test_weights_trained_with_different_preprocessing_are_warned_about(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {**RunDirectory(made / "run").config()["data"], "mean": [0.5] * 3, "std": [0.25] * 3}
    assembled(tmp_path, made / "run", made / "base", weights=str(made / "run"), data=data)
    (said,) = [
        record.getMessage() for record in caplog.records if "different preprocessing" in record.getMessage()
    ]
    assert "mean is [0.5, 0.5, 0.5] and was [0.485, 0.456, 0.406]" in said and "std" in said


def test_a_subset_of_the_classes_can_be_evaluated(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "two"
    shutil.copytree(made / "base", root)
    for path in root.glob("*/ant"):
        shutil.rmtree(path)
    out = tmp_path / "out"
    typed = ["data=folder", f"data.root={root}", "data.num_workers=0", "device=cpu", f"hydra.run.dir={out}"]
    assert command("evaluate", made / "run", *typed) == 0
    printed = capsys.readouterr()
    assert "8 images of two test, views: centre (2 of the checkpoint's 3 classes)" in printed.out
    assert "test has 8 images, 4 fewer" in printed.err and "4 fewer" in (out / "evaluate.log").read_text()
    result = RunDirectory(out).result()
    assert result is not None and [row["images"] for row in result["per_class"]] == [0, 4, 4]
    lines = (out / "predictions.csv").read_text().splitlines()[1:]
    assert all(Path(line.split(",")[0]).parent.name == line.split(",")[1] for line in lines)


def test_a_folder_of_one_class_can_be_evaluated(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "base" / "test" / "bee", tmp_path / "mine" / "bee")
    out = tmp_path / "out"
    typed = ["data=folder", f"data.root={tmp_path / 'mine'}", "data.num_workers=0", "device=cpu"]
    assert command("evaluate", made / "run", *typed, f"hydra.run.dir={out}") == 0
    result = RunDirectory(out).result()
    assert result is not None and [row["images"] for row in result["per_class"]] == [0, 4, 0]


@pytest.mark.parametrize("chosen", [["data=folder"], []])
def test_a_folder_with_only_a_test_split_can_be_evaluated(
    made: Path, tmp_path: Path, chosen: list[str]
) -> None:
    shutil.copytree(made / "base" / "test", tmp_path / "mine" / "Test")
    out = tmp_path / "out"
    typed = [*chosen, f"data.root={tmp_path / 'mine'}", "data.num_workers=0", "device=cpu"]
    assert command("evaluate", made / "run", *typed, f"hydra.run.dir={out}") == 0
    result = RunDirectory(out).result()
    assert result is not None and (result["split"], result["images"]) == ("test", {"test": 12})


def test_classes_with_composed_and_decomposed_letters_are_the_same() -> None:
    composed, decomposed = ["ant", "p\u00e9lican"], ["ant", "pe\u0301lican"]
    assert class_changes(composed, decomposed) is None
    assert match_classes(decomposed, composed) == [0, 1]
    assert kept_rows(composed, decomposed) == ({0: 0, 1: 1}, "")
    sources = [
        FileSource((f"/data/{names[1]}/1.jpg",), torch.tensor([1]), tuple(names), "data", "/data")
        for names in (composed, decomposed)
    ]
    first, second = (identify(source)["digest"] for source in sources)
    assert first == second


def test_an_older_checkpoint_is_compared_by_classes_only_with_a_warning(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(made / "run", tmp_path / "old")
    for file in (tmp_path / "old" / "checkpoints").glob("*.ckpt"):
        content = torch.load(file, weights_only=True)
        del content["splits"]
        torch.save(content, file)
    shutil.copytree(made / "base", tmp_path / "base")
    _added(tmp_path / "base")
    assembled(tmp_path / "old", tmp_path / "old", tmp_path / "base", resume=str(tmp_path / "old"))
    (said,) = [r.getMessage() for r in caplog.records if r.name.startswith("alexnet_exp")]
    assert said.endswith(
        "is from an older version and does not record its images: only its classes are compared."
    )
    _evaluate(tmp_path, tmp_path / "old", tmp_path / "base")
    assert len([r for r in caplog.records if r.name.startswith("alexnet_exp")]) == 1
    _renamed(tmp_path / "base")
    with pytest.raises(UserError, match="different classes: zebra is new, ant is gone"):
        assembled(tmp_path, tmp_path / "old", tmp_path / "base", ckpt=str(tmp_path / "old"))


def test_a_changed_test_split_is_reported_but_not_a_moved_folder_or_a_cache(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.move(shutil.copytree(made / "base", tmp_path / "copy"), tmp_path / "moved")
    cached = {**RunDirectory(made / "run").config()["data"], "cache": "ram"}
    assembled(tmp_path / "run", made / "run", tmp_path / "moved", resume=str(tmp_path / "run"), data=cached)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "images" in r.getMessage()]
    (tmp_path / "moved" / "test" / "bee" / "0.png").unlink()
    assembled(tmp_path / "run", made / "run", tmp_path / "moved", resume=str(tmp_path / "run"))
    assert (
        sum("written: test has 11 images, 1 fewer." in record.getMessage() for record in caplog.records) == 1
    )
