"""weights= with torchvision's files: the right weights in the right layers, for 1000 classes and for ten."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from small_runs import SMALL, checkpoint, run, settings
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, ResNet18_Weights, WeightsEnum

from alexnet_exp import create_model
from alexnet_exp.config.compose import group
from alexnet_exp.errors import UserError
from alexnet_exp.runs.train.command import train
from alexnet_exp.training.checkpoint.start import load_weights
from alexnet_exp.training.classifier import ImageClassifier

THEIRS = {"alexnet_owt": "alexnet", "resnet18": "resnet18"}
ENUMS: dict[str, Any] = {"alexnet_owt": AlexNet_Weights, "resnet18": ResNet18_Weights}
CATEGORIES = AlexNet_Weights.IMAGENET1K_V1.meta["categories"]  # 'crane' twice
IN_ORDER = "without class names, so the rows of {} are matched by position"
LAST = {"alexnet_owt": "classifier.fc8", "resnet18": "fc"}


@pytest.fixture(scope="module", params=sorted(THEIRS))
def reference(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    """Return our name of a network, and torchvision's network with random weights."""
    torch.manual_seed(0)
    return request.param, torchvision.models.get_model(THEIRS[request.param], weights=None).eval()


def classifier(network: str, **overrides: Any) -> ImageClassifier:
    torch.manual_seed(1)
    model = create_model(network, **overrides).eval()
    count = overrides.get("num_classes", 1000)
    classes = CATEGORIES if count == 1000 else [str(i) for i in range(count)]
    return ImageClassifier(model, classes, group("optimizer", "sgd"))


def features(model: nn.Module, last: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last layer's input, and the logits."""
    given: list[Tensor] = []
    hook = model.get_submodule(last).register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))
    with torch.no_grad():
        logits = model(images)
    hook.remove()
    return given[0], logits


def assert_same(network: str, ours: ImageClassifier, theirs: nn.Module) -> None:
    """Compare the input of the last layer, and the logits unless that layer was replaced."""
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    theirs_last = "classifier.6" if network == "alexnet_owt" else "fc"
    expected, expected_logits = features(theirs, theirs_last, images)
    seen, logits = features(ours.model, LAST[network], images)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-3
    if len(logits[0]) == 1000:
        torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-5)


@pytest.fixture
def downloads(reference: tuple[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> list[WeightsEnum]:
    """Return the reference's weights instead of downloading, and record what was requested."""
    asked: list[WeightsEnum] = []

    def get_state_dict(self: WeightsEnum, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        asked.append(self)
        return reference[1].state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    return asked


def test_logits_match_torchvision_with_its_weights(
    reference: tuple[str, nn.Module], downloads: list[WeightsEnum]
) -> None:
    network, theirs = reference
    ours = classifier(network)
    assert load_weights(ours, "torchvision") == "Weights from torchvision."
    assert downloads == [ENUMS[network].IMAGENET1K_V1]
    assert_same(network, ours, theirs)


def test_other_classes_reinitialise_the_last_layer_and_log_it(
    reference: tuple[str, nn.Module], downloads: list[WeightsEnum]
) -> None:
    network, theirs = reference
    ours = classifier(network, num_classes=10)
    before = ours.model.get_submodule(LAST[network]).weight.detach().clone()
    said = load_weights(ours, "torchvision")
    fate = "is reinitialised: none of its 1000 classes is among the 10 here"
    assert said == f"Weights from torchvision; {LAST[network]} {fate}."
    assert downloads == [ENUMS[network].IMAGENET1K_V1]
    assert torch.equal(ours.model.get_submodule(LAST[network]).weight, before)
    assert_same(network, ours, theirs)


def test_a_file_of_torchvision_s_training_script_is_read(
    reference: tuple[str, nn.Module], tmp_path: Path
) -> None:
    network, theirs = reference
    file = tmp_path / "checkpoint.pth"
    script = {"optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=0.1, model="alexnet")}
    torch.save({"model": theirs.state_dict(), **script}, file)
    ours = classifier(network, num_classes=10)
    assert "it has 10 classes" in load_weights(ours, str(file))
    assert_same(network, ours, theirs)


def test_a_plain_file_is_read(reference: tuple[str, nn.Module], tmp_path: Path) -> None:
    network, theirs = reference
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = classifier(network)
    said = load_weights(ours, str(tmp_path / "weights.pth"))
    assert said == f"Weights from {tmp_path / 'weights.pth'}; {IN_ORDER.format(LAST[network])}."
    assert_same(network, ours, theirs)


NARROW: dict[str, Any] = {
    "input_size": 63,
    "features": {f"conv{i}": {"out_channels": 8} for i in range(1, 6)},
    "classifier": {name: {"out_features": 16} for name in ("fc6", "fc7")},
}
# Containers and prefixes in users' files; DDP and DataParallel add 'module.' to the names.
FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "best_acc1": 0.5, "arch": "alexnet"},
    "DDP": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "features in parallel": lambda state: {
        "state_dict": {name.replace("features.", "features.module."): value for name, value in state.items()}
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_common_file_layouts_are_read(form: str, tmp_path: Path) -> None:
    theirs, ours = (create_model("alexnet_owt", num_classes=5, **NARROW) for _ in range(2))
    names = ["features.0", "features.3", "features.6", "features.8", "features.10"]
    names += ["classifier.1", "classifier.4", "classifier.6"]
    keys = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    state = dict(zip(keys, theirs.state_dict().values(), strict=True))
    torch.save(FORMS[form](state), tmp_path / "file.pth")
    module = ImageClassifier(ours, list("abcde"), group("optimizer", "sgd"))
    said = load_weights(module, str(tmp_path / "file.pth"))
    assert said == f"Weights from {tmp_path / 'file.pth'}; {IN_ORDER.format('classifier.fc8')}."
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_names_of_a_custom_network_are_kept(tmp_path: Path) -> None:
    theirs, ours = (nn.ModuleDict({"module": nn.Linear(2, 3)}) for _ in range(2))
    torch.save(theirs.state_dict(), tmp_path / "own.pth")
    load_weights(ImageClassifier(ours, list("abc"), group("optimizer", "sgd")), str(tmp_path / "own.pth"))
    assert torch.equal(ours["module"].weight, theirs["module"].weight)


def test_numbered_names_of_a_custom_network_are_not_mistaken_for_torchvision_s(
    tmp_path: Path,
) -> None:
    theirs, ours = (
        nn.ModuleDict(
            {
                "features": nn.Sequential(nn.Linear(2, 4)),
                "classifier": nn.Sequential(nn.ReLU(), nn.Linear(4, 3)),
            }
        )
        for _ in range(2)
    )
    assert {"features.0.weight", "classifier.1.weight"} < set(theirs.state_dict())
    torch.save(theirs.state_dict(), tmp_path / "own.pth")
    load_weights(ImageClassifier(ours, list("abc"), group("optimizer", "sgd")), str(tmp_path / "own.pth"))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("network", "classes", "said"),
    [
        pytest.param("resnet18", 10, f"; {IN_ORDER.format('fc')}", marks=pytest.mark.slow),
        ("resnet18", 7, "; fc is reinitialised: it has 10 classes, the weights 7"),
        pytest.param(
            "alexnet_owt",
            1000,
            "; classifier.fc8 is reinitialised: it has 10 classes, the weights 1000",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_starts_from_torchvision_s_file(network: str, classes: int, said: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(THEIRS[network], weights=None, num_classes=classes)
    file = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), file)
    stay = [
        "optimizer.lr=1e-30",
        "optimizer.momentum=0",
        "optimizer.nesterov=false",
        "optimizer.weight_decay=0",
    ]
    short = [
        "data.batch_size=8",
        "trainer.limit_train_batches=1",
        "trainer.limit_val_batches=1",
        "test=false",
    ]
    base = [o for o in SMALL if not o.startswith("model")]
    typed = [f"model={network}", "model.input_size=64", f"weights='{file}'", "scheduler=none", *stay, *short]
    config, typed = settings(*typed, base=base)
    train(config, typed, tmp_path / "run", "python train.py")
    assert f"Weights from {file}{said}." in (tmp_path / "run" / "train.log").read_text()
    trained = checkpoint(tmp_path / "run")["state_dict"]
    learned = [v for k, v in trained.items() if k.endswith((".weight", ".bias")) and k.startswith("model.")]
    new = 0 if classes == 10 else 2  # weight and bias of the last layer
    for a, b in list(zip(learned, theirs.parameters(), strict=True))[: len(learned) - new]:
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-20)  # a step of 1e-30 moves a zero
    assert learned[-1].shape == (10,)


def test_a_run_of_another_network_is_refused_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: pytest.fail("downloads"))
    with pytest.raises(
        UserError, match=r"^weights=torchvision only fits alexnet_owt and resnet18 .*weights=FILE\.$"
    ):
        run(tmp_path / "run", "weights=torchvision")


@pytest.mark.parametrize(
    ("network", "overrides"),
    [
        ("alexnet_cifar", {}),
        ("resnet18_cifar", {}),
        ("resnet18", {"in_channels": 1}),
        ("alexnet_owt", {"in_channels": 1}),
        ("alexnet_owt", {"features": {"conv2": {"out_channels": 64}}}),
        ("alexnet_two_fc", {}),
    ],
)
def test_other_networks_are_refused_before_anything_is_downloaded(
    network: str, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: pytest.fail("downloads"))
    with torch.device("meta"):
        ours = classifier(network, **overrides)
    with pytest.raises(UserError, match=r"weights=torchvision only fits alexnet_owt and resnet18") as caught:
        load_weights(ours, "torchvision")
    assert "\n" not in str(caught.value)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """Seeded weights of torchvision's own classes instead of a download, by torchvision's names."""
    torch.manual_seed(3)
    states = {name: torchvision.models.get_model(name, weights=None).state_dict() for name in THEIRS.values()}

    def seeded(self: WeightsEnum, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return states["resnet18" if "resnet18" in self.url else "alexnet"]

    monkeypatch.setattr(WeightsEnum, "get_state_dict", seeded)
    return states


@pytest.mark.parametrize("name", ["alexnet_owt", "resnet18"])
def test_create_model_takes_torchvision_s_weights_with_a_new_last_layer_for_other_classes(
    name: str, published: dict[str, dict[str, Tensor]]
) -> None:
    theirs = torchvision.models.get_model(THEIRS[name], weights=None).eval()
    theirs.load_state_dict(published[THEIRS[name]])
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    same, other = (create_model(name, pretrained=True, num_classes=n).eval() for n in (1000, 7))
    with torch.no_grad():
        torch.testing.assert_close(same(images), theirs(images))
        assert other(images).shape == (2, 7)
    for (key, ours), value in zip(other.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(ours, value) != key.startswith(("fc.", "classifier.fc8.")), key
    with pytest.raises(UserError, match="do not fit these overrides"):
        create_model(name, pretrained=True, in_channels=1)


def test_without_a_network_connection_the_file_to_fetch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: WeightsEnum, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        raise OSError("no\nroute")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with torch.device("meta"):
        ours = classifier("resnet18")
    with pytest.raises(
        UserError, match=r"\(no route\): download https://\S+resnet18\S+ yourself and set weights=FILE"
    ):
        load_weights(ours, "torchvision")
