"""weights= reads the files of other training scripts, whatever they store around the tensors."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alexnet_exp.config.compose import group
from alexnet_exp.errors import UserError
from alexnet_exp.training.checkpoint.start import load_weights
from alexnet_exp.training.classifier import ImageClassifier
from tests.data.makers import fail_to_read

HOLDERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "ema",
           "model_ema", "state_dict_ema", "ema_state_dict")  # fmt: skip
PREFIXES = ("", "module.", "_orig_mod.", "net.", "model.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.",
            "model.module.", "net.module.", "module.module.", "model.net._orig_mod.", "backbone.",
            "module.backbone.")  # fmt: skip


class Small(nn.Module):
    """Two layers; the first can be named like a wrapper's prefix."""

    def __init__(self, first: str = "conv1") -> None:
        super().__init__()
        self.add_module(first, nn.Conv2d(3, 2, 1))
        self.fc = nn.Linear(2, 3)


def classifier(first: str = "conv1") -> ImageClassifier:
    return ImageClassifier(Small(first), ["a", "b", "c"], group("optimizer", "sgd"))


def tensors(first: str = "conv1", prefix: str = "") -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {f"{prefix}{name}": torch.randn_like(value) for name, value in Small(first).state_dict().items()}


def check(path: Path, content: Any, first: str = "conv1") -> None:
    torch.save(content, path)
    network = classifier(first)
    load_weights(network, str(path))
    wanted = tensors(first)
    assert all(torch.equal(value, wanted[name]) for name, value in network.model.state_dict().items())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_removed(tmp_path: Path, prefix: str) -> None:
    check(tmp_path / "a.pt", tensors(prefix=prefix))
    check(tmp_path / "b.pt", {"model_state_dict": tensors(prefix=prefix), "epoch": 3})


@pytest.mark.parametrize("holder", HOLDERS)
def test_state_dicts_are_found_under_common_keys(tmp_path: Path, holder: str) -> None:
    others = {"epoch": 3, "best_acc1": torch.tensor(0.9), "optimizer": {"state": {}, "param_groups": []}}
    check(tmp_path / "a.pt", {**others, holder: tensors()})
    check(tmp_path / "b.pt", {**others, holder: {"state_dict": tensors()}})


def test_settings_under_a_common_key_are_not_mistaken_for_tensors(tmp_path: Path) -> None:
    check(tmp_path / "a.pt", {"model": {"name": "alexnet", "width": 2}, "net": tensors()})


def test_other_entries_of_a_lightning_module_are_ignored(tmp_path: Path) -> None:
    content = {**tensors(prefix="net."), "criterion.weight": torch.ones(3), "metric.total": torch.tensor(1.0)}
    check(tmp_path / "a.pt", {"state_dict": content})


@pytest.mark.parametrize("first", ["model", "net", "module"])
def test_a_network_can_have_submodules_named_like_prefixes(tmp_path: Path, first: str) -> None:
    check(tmp_path / "a.pt", tensors(first), first)
    check(tmp_path / "b.pt", {"state_dict": tensors(first, "model.")}, first)


@pytest.mark.parametrize(
    "content",
    [{}, {"model": {}}, {"model": {"model": {"model": {"model": {}}}}}, {"model": "alexnet"}, [1], None, 3],
)
def test_a_file_without_tensors_is_a_one_line_error(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError) as caught:
        load_weights(classifier(), str(tmp_path / "a.pt"))
    assert "holds no weights" in str(caught.value) or "is from a different network" in str(caught.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("name", ["a.pt", "last.ckpt"])
def test_an_unreadable_file_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    path = str(tmp_path / name)
    torch.save(tensors(), path)
    fail_to_read(monkeypatch, path, number)
    with pytest.raises(UserError) as caught:
        load_weights(classifier(), path)
    assert str(caught.value).startswith(f"{path} cannot be read: {os.strerror(number)}; ")
