"""The Python API for trained classifiers: any kind of image, preprocessed as in training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import alexnet_exp
from alexnet_exp.data import Digits
from alexnet_exp.data.datasets.digits import load
from alexnet_exp.errors import UserError
from alexnet_exp.inference import LoadedClassifier, resolve_checkpoint
from alexnet_exp.targets import build
from tests.training.small_runs import checkpoint, run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    run(directory, "callbacks.ema.enabled=true", "callbacks.ema.decay=0.5", "optimizer.lr=0.02")
    return directory


@pytest.fixture(scope="module")
def classifier(run_dir: Path) -> LoadedClassifier:
    return alexnet_exp.load_classifier(run_dir, device="cpu")


def expected(run_dir: Path, images: torch.Tensor) -> torch.Tensor:
    """Return probabilities (N, 10) as training computes them: from the data module and a freshly built network."""
    saved = checkpoint(run_dir, "best")
    keys = {k: v for k, v in saved["config"]["data"].items() if k != "_target_"}
    data = Digits(**keys, augment=saved["config"]["augment"])
    model = build(saved["config"]["model"]).eval()
    state = saved["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    with torch.no_grad():
        return model(data.pipeline.evaluate(images)).softmax(1)


def test_predictions_match_the_training_code(run_dir: Path, classifier: LoadedClassifier):
    images = load("test", 3).images[:7]
    probabilities = expected(run_dir, images)
    for found, row in zip(classifier.predict(images, top_k=10, batch_size=3), probabilities, strict=True):
        assert dict(zip(found.classes, found.probabilities, strict=True)) == pytest.approx(
            {str(digit): float(p) for digit, p in enumerate(row)}, rel=1e-5
        )
        assert found.probabilities == tuple(sorted(found.probabilities, reverse=True))


def test_the_averaged_weights_are_loaded(run_dir: Path, classifier: LoadedClassifier):
    saved = checkpoint(run_dir, "best")
    name = "features.conv1.weight"
    loaded = classifier.model.get_parameter(name)
    assert torch.equal(loaded, saved["state_dict"][f"model.{name}"])
    assert not torch.equal(loaded, saved["current_model_state"][f"model.{name}"])
    assert not classifier.model.training


def test_images_in_memory_are_stored_at_the_training_size(classifier: LoadedClassifier):
    assert classifier.preprocess.stored_size == 8
    assert classifier.preprocess(Image.new("L", (40, 30))).shape == (1, 3, 32, 32)


def test_all_forms_of_an_image_give_the_same_prediction(classifier: LoadedClassifier, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(pixels),
        pixels,
        planes,
        pixels[None],
        planes[None],
        [planes],
    ]
    alone = [prediction for form in forms for prediction in classifier.predict(form)]
    assert len(alone) == len(forms)
    assert len(set(alone)) == 1
    together = classifier.predict(forms)  # in one batch, so the last bits may differ
    assert {each.classes for each in together} == {alone[0].classes}
    for each in together:
        assert each.probabilities == pytest.approx(alone[0].probabilities, rel=1e-5)
    assert len(alone[0].classes) == 5


def test_all_forms_of_a_grey_image_give_the_same_prediction(classifier: LoadedClassifier):
    grey = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    forms = [
        grey,
        grey[..., None],
        torch.from_numpy(grey),
        torch.from_numpy(grey)[None],
        Image.fromarray(grey),
    ]
    predictions = classifier.predict([*forms, np.repeat(grey[..., None], 3, axis=2)])
    assert len(set(predictions)) == 1


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (
            np.zeros((4, 4, 3), dtype=np.float32),
            r"must be uint8.*this one is an array \(4, 4, 3\) of float32",
        ),
        (np.zeros((4, 4, 4), dtype=np.uint8), r"this one is an array \(4, 4, 4\)"),
        (torch.zeros(3, 4, 4), r"this one is \(3, 4, 4\) of torch.float32"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"this one is \(4, 4, 3\)"),
        (np.zeros((0, 4), dtype=np.uint8), "must be uint8"),
        (7, "int is not an image"),
        ("nowhere.jpg", "nowhere.jpg cannot be read"),
    ],
    ids=["float array", "four channels", "float tensor", "channels last", "empty", "number", "no file"],
)
def test_invalid_images_are_refused(classifier: LoadedClassifier, image: object, said: str):
    with pytest.raises(UserError, match=said):
        classifier.predict([image])


def test_the_callers_random_state_is_unchanged(run_dir: Path):
    torch.manual_seed(1)
    first = torch.rand(3)
    torch.manual_seed(1)
    alexnet_exp.load_classifier(run_dir, device="cpu")
    assert torch.equal(torch.rand(3), first)


def test_the_checkpoint_file_is_sufficient(run_dir: Path, classifier: LoadedClassifier, tmp_path: Path):
    (tmp_path / "only.ckpt").write_bytes((run_dir / "checkpoints" / "best.ckpt").read_bytes())
    alone = alexnet_exp.load_classifier(tmp_path / "only.ckpt", device="cpu")
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert alone.predict(image) == classifier.predict(image)
    assert alone.classes == tuple("0123456789")
    assert alone.config["seed"] == 0


def test_a_foreign_class_is_built_only_if_trusted(run_dir: Path, tmp_path: Path):
    saved = checkpoint(run_dir, "best")
    saved["config"]["model"]["_target_"] = "torch.nn.Identity"
    torch.save(saved, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"names 'torch.nn.Identity'.*trust=\[torch\]"):
        alexnet_exp.load_classifier(tmp_path / "foreign.ckpt", device="cpu")


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cpu:1", "cuda:x"])
def test_an_unavailable_device_is_refused(run_dir: Path, device: str):
    with pytest.raises(UserError, match=f"device={device} is not available"):
        alexnet_exp.load_classifier(run_dir, device=device)


def test_a_wandb_artifact_that_cannot_be_downloaded_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch):
    import wandb

    def api(*_: object, **__: object) -> None:
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "Api", api)
    with pytest.raises(
        UserError, match=r"artifact me/lab/model-a1b2:best could not be downloaded \(.*no route"
    ):
        resolve_checkpoint("me/lab/model-a1b2:best")


def test_a_wandb_artifact_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import wandb

    asked = []

    class Api:
        def __init__(self, timeout: int) -> None: ...

        def artifact(self, name: str, type: str) -> Api:
            asked.append((name, type))
            return self

        def download(self) -> str:
            (tmp_path / "best.ckpt").touch()
            return str(tmp_path)

    monkeypatch.setattr(wandb, "Api", Api)
    assert resolve_checkpoint("me/lab/model-a1b2:best") == tmp_path / "best.ckpt"
    assert asked == [("me/lab/model-a1b2:best", "model")]


def test_importing_the_package_does_not_import_torch():
    code = "import sys, alexnet_exp; assert 'load_classifier' in alexnet_exp.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
