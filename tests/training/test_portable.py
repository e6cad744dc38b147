"""A network in one safetensors file: written by export, read by every verb; and the pretrained ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_exp import create_model, load_classifier
from alexnet_exp.cli import main
from alexnet_exp.errors import UserError
from alexnet_exp.pretrained import FOLDER, shipped, shipped_file
from alexnet_exp.runs.export.formats import describe, write
from alexnet_exp.training.checkpoint.portable import parse
from alexnet_exp.training.checkpoint.read import read_checkpoint
from tests.runs.evaluated_runs import make_runs
from tests.test_results import RECORDS

NAME = "convnet_80sec"


def test_the_pretrained_network_is_small_and_its_record_is_in_results() -> None:
    assert NAME in shipped()
    files = [FOLDER / f"{name}.safetensors" for name in shipped()]
    assert all(file.stat().st_size <= 1_000_000 for file in files)
    assert sum(file.stat().st_size for file in files) <= 3_000_000
    for name, file in zip(shipped(), files, strict=True):
        record = read_checkpoint(file)["record"]
        kept = RECORDS / name / f"seed-{record['seed']}" / "result.json"
        assert json.loads(kept.read_text(encoding="utf-8")) == record


def test_our_reader_matches_the_safetensors_library() -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    file = shipped_file(NAME)
    assert file is not None
    theirs, (ours, _) = load_file(file), parse(file.read_bytes())
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_a_pretrained_network_has_the_weights_of_its_file() -> None:
    model = create_model(NAME, pretrained=True)
    loaded = load_classifier(NAME, device="cpu")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert loaded.classes[0] == "airplane" and loaded.preprocess.pipeline.mean_image.shape == (3, 32, 32)
    with pytest.raises(
        UserError, match=r"alexnet_lrn has no pretrained weights; these have: .*alexnet_owt, resnet18"
    ):
        create_model("alexnet_lrn", pretrained=True)
    with pytest.raises(UserError, match="do not fit these overrides"):
        create_model(NAME, pretrained=True, features={"conv2": {"out_channels": 8}})


@pytest.mark.parametrize("name", shipped())
def test_a_pretrained_network_for_other_classes_has_a_new_last_layer(name: str) -> None:
    torch.manual_seed(3)
    untrained = create_model(name, num_classes=3).state_dict()
    torch.manual_seed(3)
    model, published = create_model(name, pretrained=True, num_classes=3), create_model(name, pretrained=True)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    for key, value in model.state_dict().items():
        other = untrained if key.startswith("classifier.fc8.") else published.state_dict()
        assert torch.equal(value, other[key]), key


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "photo.jpg")
    return tmp_path


def test_predict_accepts_a_pretrained_network_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", NAME, "photo.jpg"]) == 0
    assert "photo.jpg" in capsys.readouterr().out
    assert main(["predict", "convnet_80sek", "photo.jpg"]) == 1
    assert "Did you mean convnet_80sec?" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["settings", "weights"])
def test_a_changed_byte_is_detected(part: str, folder: Path) -> None:
    file = shipped_file(NAME)
    assert file is not None
    content = bytearray(file.read_bytes())
    # The other strings in the header are for humans and are not checked.
    content[content.index(b"multistep") if part == "settings" else -5] ^= 1
    (folder / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors (cannot be read|is not a checkpoint)"):
        load_classifier("a.safetensors")


def test_exporting_a_run_and_reading_it_back_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    make_runs(folder, seeds=1)
    assert main(["export", "run0", "format=safetensors", "out=net.safetensors"]) == 0
    direct, exported = load_classifier("run0", "cpu"), load_classifier("net.safetensors", "cpu")
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(direct.probabilities(images), exported.probabilities(images))
    assert exported.classes == direct.classes
    assert str(folder) not in json.dumps(exported.config)
    scores = []
    for each in ("run0", "net.safetensors"):
        out = folder / f"evaluated {each}"
        assert (
            main(
                ["evaluate", each, "split=test", f"paths.data_dir={folder / 'data'}", f"hydra.run.dir={out}"]
            )
            == 0
        )
        scores.append(json.loads((out / "result.json").read_text(encoding="utf-8"))["metrics"])
    assert scores[0] == scores[1]

    # A run directory with the name of a pretrained network takes precedence, with a message.
    shutil.copytree(folder / "run0", folder / NAME)
    capsys.readouterr()
    assert load_classifier(NAME, "cpu").path.parent == Path(NAME) / "checkpoints"
    assert "not the pretrained network of the same name" in capsys.readouterr().err


def test_an_export_says_that_its_network_has_learned_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    loaded = load_classifier(NAME, device="cpu")
    for found in (None, {"loss": 2.303, "guessing": 2.3026, "steps": 200}):
        loaded.at_chance = found
        write(loaded, "safetensors", False, describe(loaded, False), folder / "net.safetensors")
        assert load_classifier("net.safetensors", "cpu").at_chance == found
        assert main(["predict", "net.safetensors", "photo.jpg", f"hydra.run.dir=out{found is None}"]) == 0
        assert ("This network has learned nothing" in capsys.readouterr().err) == (found is not None)


def test_training_starts_from_pretrained_weights(folder: Path) -> None:
    from tests.runs.evaluated_runs import write_cifar10

    write_cifar10(folder / "data", per_batch=10)
    short = [
        "trainer=cpu",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "optimizer.lr=1e-12",
        "test=false",
    ]
    typed = [f"experiment={NAME}", f"weights={NAME}", f"paths.data_dir={folder / 'data'}", "logger=none"]
    assert main(["train", *typed, *short, "hydra.run.dir=run"]) == 0
    trained = read_checkpoint(folder / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    for name, value in create_model(NAME, pretrained=True).state_dict().items():
        torch.testing.assert_close(trained[f"model.{name}"], value, rtol=0, atol=1e-6)
