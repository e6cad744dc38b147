"""`alexnet-exp figures`: every figure of a small run, compared with plain torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import alexnet_exp as package
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.runs.figures import make
from alexnet_exp.runs.figures.command import NAMES, check_settings
from alexnet_exp.runs.figures.make import FIGURES, search
from alexnet_exp.runs.figures.subject import LeftOutError, Subject, open_subject
from alexnet_exp.runs.train.command import train
from tests.runs.evaluated_runs import alexnet_exp
from tests.training.small_runs import SMALL, run, settings


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    run(directory, "test=false")
    return directory


@pytest.fixture(scope="module")
def grey_resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "grey"
    base = [each for each in SMALL if not each.startswith("model")]
    limits = ["trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "data.batch_size=4"]
    few = ["data.train_subset=20", "data.val_size=10", "data.test_subset=10"]
    typed = ["model=resnet18_cifar", "data.channels=1", "test=false", *limits, *few]
    config, typed = settings(*typed, base=base)
    train(config, typed, directory, "python train.py")
    return directory


def subject_of(run_dir: Path, tmp_path: Path, **wanted: Any) -> Subject:
    """Open a run as the verb does."""
    overrides = [f"ckpt={run_dir}", "device=cpu", f"paths.cache_dir={tmp_path / 'cache'}"]
    overrides += [f"{key}={value}" for key, value in wanted.items()]
    return open_subject(check_settings(plain(compose("figures", overrides)), overrides))


def drawn(out: Path, run_dir: Path, *arguments: str) -> dict[str, Any]:
    """Run the verb into `out` and return result.json."""
    words = [
        str(run_dir),
        "device=cpu",
        f"paths.cache_dir={out.parent / 'cache'}",
        f"hydra.run.dir={out}",
        *arguments,
    ]
    assert alexnet_exp("figures", *words) == 0
    return json.loads((out / "result.json").read_text())


def test_every_figure_is_a_file_and_on_the_page(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "captum.attr", None)  # as if it were not installed
    result = drawn(tmp_path / "out", run_dir, "sample=3")
    assert set(result["figures"]) == set(NAMES) - {"grad_cam"}
    for name, file in result["figures"].items():
        with Image.open(tmp_path / "out" / file) as image:
            assert image.width > 50, name
    assert set(result["left_out"]) == {"grad_cam"}
    assert result["split"] == "test"
    assert len(result["sample"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert any("skipping grad_cam" in line and "[figures]" in line for line in lines)
    assert (tmp_path / "out" / "figures.html").stat().st_size > 20_000


@pytest.mark.slow
def test_figures_work_for_grey_images_and_a_resnet(grey_resnet: Path, tmp_path: Path):
    result = drawn(tmp_path / "out", grey_resnet, "sample=2", "split=val")
    assert set(result["figures"]) | set(result["left_out"]) == set(NAMES)
    assert set(result["left_out"]) <= {"grad_cam"}  # if captum is not installed


def test_filters_and_weights_need_no_images(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "alexnet_exp.runs.figures.subject.open_data", lambda *_: pytest.fail("images were read")
    )
    result = drawn(tmp_path / "out", run_dir, "which=[weight_histograms,filters]")
    assert list(result["figures"]) == ["filters", "weight_histograms"]
    assert result["split"] is None


def test_the_sample_depends_only_on_the_seed(run_dir: Path, tmp_path: Path):
    first, again = (subject_of(run_dir, tmp_path, seed=1).sample for _ in range(2))
    assert first == again
    assert first != subject_of(run_dir, tmp_path, seed=2).sample
    assert len(set(first)) == 8
    assert len(subject_of(run_dir, tmp_path, sample=1000).sample) == 60  # all of them


def test_bars_match_predict(run_dir: Path, tmp_path: Path):
    subject = subject_of(run_dir, tmp_path)
    (guesses,) = FIGURES["top5"](subject).content
    classifier = package.load_classifier(run_dir, device="cpu")
    for guess in guesses:
        (expected,) = classifier.predict(guess.picture.image)
        assert [name for name, _ in guess.bars] == list(expected.classes)
        assert [p for _, p in guess.bars] == pytest.approx(expected.probabilities, rel=1e-4)


@pytest.fixture(params=["in order", "out of order"])
def loaded(request: pytest.FixtureRequest, run_dir: Path, tmp_path: Path) -> Subject:
    """A run whose loader yields images in the order of the split or, as data=streaming may, in another."""
    subject = subject_of(run_dir, tmp_path, sample=2)
    loader, shuffle = subject.data.loader, request.param == "out of order"
    subject.data.loader = lambda split: loader(split, shuffle)  # type: ignore[method-assign]
    return subject


def test_neighbours_match_a_slow_loop(loaded: Subject):
    subject = loaded
    (rows,) = FIGURES["nearest"](subject).content
    source = subject.data.sources["train"]
    model = subject.network
    images = torch.stack([subject.data.stored_image("train", i) for i in range(len(source))])
    with torch.no_grad():
        features = model.features(subject.prepared(images)).flatten(1).double()
        queries = model.features(subject.inputs).flatten(1).double()
    for row, query in zip(rows, queries, strict=True):
        distances = [float((query - feature).norm()) for feature in features]
        order = sorted(range(len(distances)), key=distances.__getitem__)[:6]
        assert [p.name for p, _ in row.found] == [source.image_name(i) for i in order]
        assert [d for _, d in row.found] == pytest.approx([distances[i] for i in order], rel=1e-4)


def test_features_are_computed_once_for_a_checkpoint(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (first,) = FIGURES["nearest"](subject_of(run_dir, tmp_path, sample=2)).content
    monkeypatch.setattr(Subject, "batches", lambda *_: pytest.fail("computed again"))
    (again,) = FIGURES["nearest"](subject_of(run_dir, tmp_path, sample=2)).content
    assert [[d for _, d in row.found] for row in first] == [[d for _, d in row.found] for row in again]
    other = subject_of(run_dir, tmp_path, sample=2)
    other.path = tmp_path / "other.ckpt"
    other.path.write_bytes(b"another checkpoint")
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        FIGURES["nearest"](other)


def test_a_training_image_is_not_its_own_neighbour(run_dir: Path, tmp_path: Path):
    (rows,) = FIGURES["nearest"](subject_of(run_dir, tmp_path, split="train", sample=4)).content
    assert all(row.picture.name not in [p.name for p, _ in row.found] for row in rows)


def test_search_returns_exact_ties_in_order_and_no_more_than_exist():
    features = np.array([[1.0, 0], [0, 1], [1, 0], [3, 3]], dtype=np.float32)
    query = torch.tensor([1.0, 0.0])
    assert search(features, query, 2) == [(0, 0.0), (2, 0.0)]
    assert [i for i, _ in search(features, query, 9, leave_out=0)] == [2, 1, 3]


def test_features_of_an_older_format_are_ignored(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    subject = subject_of(run_dir, tmp_path)
    now = make.fingerprint(subject)
    monkeypatch.setattr(make, "FEATURES_FORMAT", make.FEATURES_FORMAT - 1)
    assert make.fingerprint(subject) != now


def test_mistakes_are_the_most_confident_ones_of_each_class(loaded: Subject):
    subject = loaded
    (classes,) = FIGURES["mistakes"](subject).content
    source = subject.data.sources["test"]
    wrong: dict[str, list[float]] = {}
    certainty: dict[str, float] = {}
    for i in range(len(source)):
        p = subject.predict(subject.prepared(subject.data.stored_image("test", i)[None]))[0]
        if int(p.argmax()) != int(source.labels[i]):
            wrong.setdefault(subject.classes[int(source.labels[i])], []).append(float(p.max()))
            certainty[source.image_name(i)] = float(p.max())
    assert {each.name: each.wrong for each in classes} == {name: len(found) for name, found in wrong.items()}
    for each in classes:
        shown = [guess.bars[0][1] for guess in each.guesses]
        assert shown == pytest.approx(sorted(wrong[each.name], reverse=True)[:5], rel=1e-4)
        of_pictures = [certainty[guess.picture.name] for guess in each.guesses]
        assert of_pictures == pytest.approx(shown, rel=1e-4)
        assert {guess.picture.label for guess in each.guesses} == {each.name}
    shares = [each.wrong / each.total for each in classes]
    assert shares == sorted(shares, reverse=True)


def test_grad_cam_matches_the_formula_of_the_paper(run_dir: Path, tmp_path: Path):
    pytest.importorskip("captum", reason="captum is not installed")
    subject = subject_of(run_dir, tmp_path, layer="conv2", sample=3)
    (heats,) = FIGURES["grad_cam"](subject).content
    features, classifier = subject.network.features, subject.network.classifier
    names = [name for name, _ in features.named_children()]
    cut = names.index("conv2_relu") + 1
    maps = features[:cut](subject.inputs).detach().requires_grad_()
    logits = classifier(features[cut:](maps).flatten(1))
    logits.max(1).values.sum().backward()
    assert maps.grad is not None
    weights = maps.grad.mean((2, 3), keepdim=True)
    expected = (weights * maps).sum(1, keepdim=True).relu().detach()
    for heat, one in zip(heats, expected, strict=True):
        large = functional.interpolate(one[None], heat.heat.shape, mode="bilinear", align_corners=False)[0, 0]
        scaled = large / large.max() if large.max() > 0 else large
        np.testing.assert_allclose(heat.heat, scaled.numpy(), atol=1e-5)


def test_grad_cam_uses_the_last_layer_with_maps_of_a_useful_size(run_dir: Path, tmp_path: Path):
    pytest.importorskip("captum", reason="captum is not installed")
    assert "Layer conv2, maps of 4 × 4" in FIGURES["grad_cam"](subject_of(run_dir, tmp_path)).text


def test_the_error_for_an_unknown_layer_lists_the_known_ones(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("captum", reason="captum is not installed")
    out = tmp_path / "out"
    words = ["which=grad_cam", "layer=conv9", "device=cpu", f"hydra.run.dir={out}"]
    assert alexnet_exp("figures", run_dir, *words) == 1
    assert "conv1, conv2, conv3, conv4, conv5" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("figure", ["nearest", "weight_histograms"])
def test_an_unknown_layer_is_refused_before_images_are_read(
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    figure: str,
):
    monkeypatch.setitem(FIGURES, figure, lambda subject: pytest.fail("a figure was begun"))
    words = [f"which={figure}", "layer=conv", "device=cpu", f"hydra.run.dir={tmp_path / 'out'}"]
    assert alexnet_exp("figures", run_dir, *words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "invalid layer=conv: expected a layer with feature maps, one of conv1, conv2" in line


def test_a_network_without_a_linear_layer_has_no_neighbours(run_dir: Path, tmp_path: Path):
    subject = subject_of(run_dir, tmp_path)
    subject.network = torch.nn.Conv2d(3, 4, 3)
    with pytest.raises(LeftOutError, match="no fully connected layer"):
        FIGURES["nearest"](subject)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("which=conv", "invalid which='conv': expected all, or some of [filters"),
        ("which=[]", "which=[] selects no figure"),
        ("sample=0", "invalid sample=0: expected"),
        ("model.input_size=64", "is fixed by the checkpoint"),
        ("device=tpu", "device=tpu is not available"),
        ("ckpt=nowhere", "there is no such file"),
    ],
)
def test_errors_in_settings_are_one_line(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, said: str
):
    first = [] if setting.startswith("ckpt") else [run_dir]
    assert alexnet_exp("figures", *first, setting, f"hydra.run.dir={tmp_path / 'out'}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()
