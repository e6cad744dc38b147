"""experiment=finetune: what it trains, and what runs instead where nothing can be downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from rich.console import Console
from torchvision.models import WeightsEnum

from alexnet_exp.cli import main
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.runs.train import fit, offline
from alexnet_exp.runs.train.offline import with_weights_at_hand
from alexnet_exp.tracking.wandb import mode
from tests.data.makers import write_folder

TYPED = ["experiment=finetune", "data.root=photos"]
INSTEAD = ["experiment=finetune_small", "data.root=photos"]


@pytest.fixture
def offline_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No connection and an empty cache of torch's, which is returned."""
    monkeypatch.setattr(mode, "server_answers", lambda *_: False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


def test_without_a_connection_a_network_that_ships_is_fine_tuned_and_that_is_said(
    offline_machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert with_weights_at_hand(TYPED) == INSTEAD
    (said,) = capsys.readouterr().err.splitlines()
    assert "experiment=finetune_small" in said and "No network connection" in said


def test_weights_that_were_downloaded_before_are_used(offline_machine: Path) -> None:
    (offline_machine / "hub" / "checkpoints").mkdir(parents=True)
    (offline_machine / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    assert with_weights_at_hand(TYPED) == TYPED


def test_torch_keeps_its_downloads_where_we_look(offline_machine: Path) -> None:
    file = Path(
        torch.hub.get_dir(), "checkpoints", Path(torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url).name
    )
    file.parent.mkdir(parents=True)
    file.touch()
    assert offline._downloaded()


@pytest.mark.parametrize(
    "typed",
    [
        [*TYPED, "weights=runs/mine"],
        [*TYPED, "model=resnet18"],
        ["experiment=lrn_folder", "data.root=photos"],
        ["data=folder", "data.root=photos"],
        ["-m", "experiment=finetune,lrn_folder"],
    ],
)
def test_nothing_that_was_chosen_is_replaced(typed: list[str], offline_machine: Path) -> None:
    assert with_weights_at_hand(typed) == typed


@pytest.mark.parametrize(("chosen", "expected"), [("finetune", TYPED), ("finetune_small", INSTEAD)])
def test_a_resumed_run_keeps_its_experiment_whatever_the_connection_is_now(
    chosen: str, expected: list[str], offline_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump([f"experiment={chosen}", "data.root=photos"]))
    for answer in (True, False):
        monkeypatch.setattr(mode, "server_answers", lambda *_, answer=answer: answer)
        assert with_weights_at_hand([*TYPED, f"resume={tmp_path}"]) == [*expected, f"resume={tmp_path}"]


# ------------------------------------------------------------------------------------------------ runs

SHORT = ["trainer=cpu", "logger=none", "trainer.max_epochs=2", "freeze_epochs=1", "data.num_workers=0",
         "callbacks.progress_bar.enabled=false", "callbacks.model_summary.enabled=false", "compile=false"]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_folder(
        tmp_path / "photos", {f"{split}/{name}": 4 for split in ("train", "val") for name in ("cat", "dog")}
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_shipped_network_is_fine_tuned_and_stops_early(photos: Path, offline_machine: Path) -> None:
    assert main(["train", *TYPED, *SHORT, "hydra.run.dir=run"]) == 0
    config = yaml.safe_load((photos / "run" / "config.yaml").read_text())
    assert (config["weights"], config["model"]["num_classes"]) == ("caffe_cifar_quick", 2)
    assert config["callbacks"]["early_stopping"]["enabled"]
    log = (photos / "run" / "train.log").read_text()
    assert "kept cat, dog" in log and "different preprocessing" not in log
    for said in (
        "Frozen for 1 epoch: features",
        "Thawed after 1 epoch",
        "Learning rates: features.conv1 0.00",
    ):
        assert said in log, said


def test_published_weights_are_fine_tuned(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.alexnet(weights=None)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: theirs.state_dict())
    # Without checkpoints: one has 450 MB.
    typed = [
        *TYPED,
        *SHORT,
        "data.batch_size=4",
        "trainer.max_epochs=1",
        "callbacks.checkpoint.enabled=false",
    ]
    config = plain(compose("train", typed))
    data = fit.prepare_data(config)
    fit.fit_to_data(config, data, typed)
    made = fit.assemble(config, data, photos / "run", [], Console(quiet=True))
    assert fit.start_point(made, photos / "run") is None
    fit.train_and_test(made, None)
    trained = made.classifier.model
    assert torch.equal(trained.get_parameter("features.conv1.weight"), theirs.features[0].weight)
    fc6, before = trained.get_parameter("classifier.fc6.weight"), theirs.classifier[1].weight
    assert not torch.equal(fc6, before)
    torch.testing.assert_close(fc6, before, rtol=0, atol=0.05)
