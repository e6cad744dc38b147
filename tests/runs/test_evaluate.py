"""`alexnet-exp evaluate` against the metrics of the training run, and a slow loop over images, views and networks."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from alexnet_exp.runs.evaluate.data import open_data
from alexnet_exp.runs.evaluate.settings import DataDir
from alexnet_exp.targets import build
from tests.data.makers import CIFAR10_CLASSES, Arrays, write_folder
from tests.runs.evaluated_runs import evaluated, make_runs, refused, rows
from tests.training.small_runs import checkpoint, run, settings

Made = tuple[Path, Arrays, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    return folder, *make_runs(folder)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each evaluation the seconds that matplotlib takes; test_evaluate_output.py looks at the pictures."""
    monkeypatch.setattr("alexnet_exp.runs.evaluate.output.draw_all", lambda *_: [])


# ------------------------------------------------------------------------------------- against a slow loop


def slow_views(image: np.ndarray, mean: np.ndarray, views: str) -> np.ndarray:
    """Return squares of 24 pixels, less the centre of the mean image."""
    centre = image[:, 4:28, 4:28] - mean[:, 4:28, 4:28]
    if views == "flip_translate":
        wide = np.pad(centre, ((0, 0), (1, 1), (1, 1)), mode="reflect")
        moved = [centre, wide[:, :24, :24], wide[:, 2:, 2:]]
        return np.stack([view for one in moved for view in (one, one[:, :, ::-1])])
    if views != "ten_crop":
        return np.stack([centre] if views == "centre" else [centre, centre[:, :, ::-1]])
    cuts = []
    for top, left in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4)):
        cut = image[:, top : top + 24, left : left + 24].astype(np.float64)
        cuts += [cut - mean[:, 4:28, 4:28], cut[:, :, ::-1] - mean[:, 4:28, 4:28]]
    return np.stack(cuts)


def slow_probabilities(run_dir: Path, images: np.ndarray, views: str) -> np.ndarray:
    """Return (N, 10) float64: the averaged softmax of every view, image by image."""
    saved = checkpoint(run_dir, "best")
    model = build(saved["config"]["model"]).double().eval()
    state = saved["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    mean = saved["preprocessing"]["mean_image"].double().numpy()
    found = []
    for image in images:
        with torch.no_grad():
            logits = model(torch.from_numpy(slow_views(image, mean, views)))
        found.append(np.mean([(row.exp() / row.exp().sum()).numpy() for row in logits], axis=0))
    return np.stack(found)


def slow_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    guesses, losses, hits, hits5, bins = [], [], [], [], [[] for _ in range(15)]
    for row, label in zip(probabilities, labels, strict=True):
        best = sorted(range(10), key=lambda k: -row[k])
        guesses.append(best[0])
        losses.append(-math.log(row[label]))
        hits.append(best[0] == label)
        hits5.append(label in best[:5])
        (number,) = (b for b in range(15) if b / 15 < row[best[0]] <= (b + 1) / 15)
        bins[number].append((best[0] == label) - row[best[0]])
    ece = sum(abs(sum(gaps)) for gaps in bins) / len(labels)
    recalls, f1s = [], []
    for label in sorted({*labels, *guesses}):
        hit = sum(g == b == label for g, b in zip(guesses, labels, strict=True))
        recalls += [hit / sum(b == label for b in labels)] if label in labels else []
        f1s.append(2 * hit / (sum(g == label for g in guesses) + sum(b == label for b in labels)))
    return {
        "loss": np.mean(losses), "top1": np.mean(hits), "top5": np.mean(hits5), "ece": ece,
        "balanced_accuracy": np.mean(recalls), "macro_f1": np.mean(f1s),
    }  # fmt: skip


@pytest.mark.parametrize("views", ["centre", "flip", "flip_translate", "ten_crop"])
def test_views_are_averaged_like_in_a_loop_over_images(made: Made, views: str, tmp_path: Path):
    folder, arrays, _ = made
    images, labels = arrays["test"]
    found = evaluated(tmp_path / "out", folder / "run0", f"views={views}")
    expected = slow_scores(slow_probabilities(folder / "run0", images, views), labels)
    assert found["metrics"] == {f"test/{k}": pytest.approx(v, rel=1e-4) for k, v in expected.items()}
    assert found["views"] == views


def test_views_give_different_probabilities(made: Made):
    folder, arrays, _ = made
    losses = [
        slow_scores(slow_probabilities(folder / "run0", arrays["test"][0], views), arrays["test"][1])["loss"]
        for views in ("centre", "flip", "flip_translate", "ten_crop")
    ]
    assert min(abs(a / b - 1) for a in losses for b in losses if a is not b) > 1e-3


def test_ensemble_averages_the_probabilities_of_its_members(made: Made, tmp_path: Path):
    folder, arrays, _ = made
    images, labels = arrays["test"]
    runs = [folder / "run0", folder / "run1"]
    found = evaluated(tmp_path / "out", *runs, "views=ten_crop")
    each = [slow_probabilities(one, images, "ten_crop") for one in runs]
    mean = np.mean(each, axis=0)
    expected = slow_scores(mean, labels)
    assert found["metrics"] == {f"test/{k}": pytest.approx(v, rel=1e-4) for k, v in expected.items()}
    for member, probabilities in zip(found["members"], each, strict=True):
        alone = slow_scores(probabilities, labels)
        assert member["metrics"] == {f"test/{k}": pytest.approx(v, rel=1e-4) for k, v in alone.items()}
    table = rows(tmp_path / "out" / "predictions.csv")
    assert [row["class_1"] for row in table] == [CIFAR10_CLASSES[k] for k in mean.argmax(1)]
    assert [float(row["probability_1"]) for row in table] == pytest.approx(mean.max(1).tolist(), rel=1e-4)


# ------------------------------------------------------------------------------ against the run's own figures


def test_centre_reproduces_the_test_metrics_of_the_run_exactly(made: Made, tmp_path: Path):
    folder, _, results = made
    found = evaluated(tmp_path / "out", folder / "run1", "views=centre")
    own = {k: v for k, v in results[1]["metrics"].items() if k.startswith("test/")}
    assert {k: v for k, v in found["metrics"].items() if k != "test/ece"} == own
    assert len(own) == 5


def test_views_default_to_those_of_the_run(tmp_path: Path):
    _, (result,) = make_runs(tmp_path, 1, "augment.views=ten_crop")
    found = evaluated(tmp_path / "out", tmp_path / "run0")
    assert found["views"] == "ten_crop"
    assert found["metrics"]["test/loss"] == result["metrics"]["test/loss"]


def test_without_a_test_split_the_best_validation_metric_is_reproduced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_folder(
        tmp_path / "data", {f"{s}/{c}": 6 for s in ("train", "val") for c in ("red", "green", "blue")}
    )
    overrides = ["trainer.max_epochs=2", "model.input_size=24", "callbacks.ema.enabled=true"]
    base = ["model=alexnet_tf_cifar", *settings_of_a_folder(tmp_path / "data")]
    config, typed = settings(*overrides, base=base)
    from alexnet_exp.runs.train.command import train

    result = train(config, typed, tmp_path / "run", "python train.py")
    capsys.readouterr()
    found = evaluated(tmp_path / "out", tmp_path / "run")
    assert "no test images: split=val" in capsys.readouterr().out
    assert found["metrics"]["val/top1"] == result["best"]["value"]
    assert found["split"] == "val"
    named = [row["image"] for row in rows(tmp_path / "out" / "predictions.csv")]
    assert sorted(named) == sorted(map(str, (tmp_path / "data" / "val").rglob("*.jpg")))


def settings_of_a_folder(root: Path) -> list[str]:
    return [
        "data=folder", f"data.root={root}", "data.num_workers=0", "data.batch_size=4", "data.cache=off",
        "trainer=cpu", "logger=csv", "callbacks.progress_bar.enabled=false",
        "callbacks.model_summary.enabled=false",
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------- other data


def test_other_data_is_matched_by_class_names(made: Made, tmp_path: Path):
    folder, _, _ = made
    own = evaluated(tmp_path / "own", folder / "run0", "split=test")
    from PIL import Image

    images, labels = made[1]["test"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        # Folders are numbered by name: those of CIFAR-10 are sorted already, so the names are turned round.
        place = tmp_path / "data" / CIFAR10_CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{number:02d}.png")
    found = evaluated(
        tmp_path / "out",
        folder / "run0",
        "data=folder",
        f"data.root={tmp_path / 'data'}",
        "data.num_workers=0",
    )
    assert found["split"] == "train"
    assert found["metrics"]["train/top1"] == own["metrics"]["test/top1"]
    assert found["metrics"]["train/loss"] == pytest.approx(own["metrics"]["test/loss"], rel=1e-6)


def test_labels_are_renumbered_when_the_class_order_differs(made: Made, tmp_path: Path):
    from alexnet_exp.runs.evaluate.data import _renumber
    from tests.data.made import arrays

    source = arrays(6, "test", seed=0)  # ant, bee, cat in turn
    (renumbered,) = _renumber({"test": source}, ["cat", "ant", "bee"]).values()
    assert renumbered.labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert renumbered.classes == ("cat", "ant", "bee")


def test_a_member_with_two_classes_of_one_name_keeps_them_apart_in_another_order():
    from alexnet_exp.runs.evaluate.members import _reorder_classes
    from alexnet_exp.runs.evaluate.scores import Table

    labels, whole = np.array([0, 1, 2]), np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    table = Table(labels, labels[:, None], whole.max(1, keepdims=True), whole)
    found = _reorder_classes(table, ["crane", "owl", "crane"], ["owl", "crane", "crane"])
    assert found.labels.tolist() == found.top[:, 0].tolist() == [1, 0, 2]
    assert found.whole is not None
    assert found.whole.tolist() == whole[:, [1, 0, 2]].tolist()


@pytest.mark.parametrize("cache", ["off", "ram"])
def test_members_share_images_unless_the_stored_size_differs(cache: str, tmp_path: Path):
    write_folder(tmp_path / "train", {"cat": 3, "dog": 3})
    config, _ = settings(
        "data.val_fraction=0.3", base=["model=alexnet_tf_cifar", *settings_of_a_folder(tmp_path)]
    )
    config["data"] |= {"mean": [0.5] * 3, "std": [0.25] * 3, "channels": 3, "image_size": 24}
    wanted: Any = SimpleNamespace(
        data={"cache": cache}, trust=[], batch_size=None, views=None, data_dir=DataDir(path="", typed=False)
    )
    opened: dict[str, dict[str, Any]] = {}
    for size in (28, 32):
        recorded = {"image_size": 24, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "stored_size": size,
                    "mean_image": None}  # fmt: skip
        saved = {"config": config, "preprocessing": recorded, "classes": ["cat", "dog"]}
        data = open_data(saved, wanted, opened)
        assert data.stored_image("train", 0).shape[-1] == size
    assert len(opened) == (1 if cache == "off" else 2)


def test_other_classes_are_refused_with_both_lists(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    said = refused(capsys, tmp_path / "out", made[0] / "run0", "data=digits")
    assert "classes that the checkpoint was not trained on: 0, 1, 2," in said
    assert "of the checkpoint: airplane, automobile," in said


def test_moved_data_is_found_at_its_new_location(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, _, results = made
    run_dir = tmp_path / "run0"
    shutil.copytree(folder / "run0", run_dir)
    shutil.copytree(folder / "data", tmp_path / "moved")
    saved = checkpoint(run_dir, "best")
    saved["config"]["data"]["data_dir"] = str(tmp_path / "nowhere")
    (run_dir / "checkpoints" / "best.ckpt").unlink()
    torch.save(saved, run_dir / "checkpoints" / "best.ckpt")
    top1 = results[0]["metrics"]["test/top1"]
    for number, place in enumerate(
        (f"paths.data_dir={tmp_path / 'moved'}", f"data.data_dir={tmp_path / 'moved'}")
    ):
        assert evaluated(tmp_path / f"out{number}", run_dir, place)["metrics"]["test/top1"] == top1
    assert "data_dir" in refused(capsys, tmp_path / "out", run_dir, "data.data_dirr=x")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["split=validation"],
            "invalid split='validation': expected one of auto, test, val, train.",
        ),
        (["views=corner"], "invalid views='corner': expected"),
        (["model.input_size=32"], "model.input_size is fixed by the checkpoint"),
        (["data=cifar10", "data.mean=[0,0,0]"], "data.mean is fixed by the checkpoint"),
        (["batch_size=0"], "invalid batch_size=0: expected an integer >= 1, or null."),
        (["data.batch_size=7"], "data.batch_size is for training: set batch_size=N instead."),
        (["compile=true"], ": expected false, or null."),
        (["logger=wandb"], "has no W&B run: leave it out."),
        (["logger=tensorboard"], "use logger=wandb or logger=none."),
    ],
)
def test_mistake_is_reported_in_one_line_and_leaves_no_files(
    made: Made, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert said in refused(capsys, tmp_path / "out", made[0] / "run0", *arguments)


def test_ensemble_has_no_wandb_run(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = f"ckpt=[{made[0] / 'run0'}, {made[0] / 'run1'}]"
    assert "an ensemble has several" in refused(capsys, tmp_path / "out", runs, "logger=wandb")


def test_missing_checkpoint_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = refused(capsys, tmp_path / "out", tmp_path / "none.ckpt")
    assert said.endswith("there is no such file or run directory.")


def test_ten_crop_of_images_smaller_than_the_input_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(tmp_path / "run", "test=false")
    assert "these have 8" in refused(capsys, tmp_path / "out", tmp_path / "run", "views=ten_crop")


def test_ten_crop_without_a_margin_warns_to_use_flip(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_runs(tmp_path, 1, "model.input_size=32", "augment.mean_image=none")
    found = {}
    for views in ("flip", "ten_crop"):
        found[views] = evaluated(tmp_path / views, tmp_path / "run0", f"views={views}")["metrics"]
        said = "all five crops are the same: views=flip" in capsys.readouterr().err
        assert said == (views == "ten_crop")
    assert found["ten_crop"] == {key: pytest.approx(value, rel=1e-5) for key, value in found["flip"].items()}
