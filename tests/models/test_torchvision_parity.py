"""alexnet_owt and resnet18 against torchvision's networks with the same weights, in both directions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from alexnet_exp import create_model
from alexnet_exp.models.weights import ours_to_torchvision, torchvision_to_ours


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("ours", "theirs"), [("alexnet_owt", "alexnet"), ("resnet18", "resnet18")])
def test_torchvision_weights_give_torchvision_logits(ours: str, theirs: str, images: torch.Tensor):
    torch.manual_seed(0)
    reference = torchvision.models.get_model(theirs, weights=None).eval()
    with torch.device("meta"):
        net = create_model(ours).eval()
    net.load_state_dict(torchvision_to_ours(reference.state_dict()), assign=True)
    with torch.no_grad():
        expected = reference(images)
        torch.testing.assert_close(net(images), expected, rtol=0, atol=1e-5)
        assert expected.std() > 1e-3  # the comparison is not trivial
    back = ours_to_torchvision(net.state_dict())
    assert list(back) == list(reference.state_dict())
    assert all(torch.equal(back[name], value) for name, value in reference.state_dict().items())


def test_alexnet_owt_matches_torchvision_at_other_image_sizes():
    torch.manual_seed(0)
    reference = torchvision.models.alexnet(weights=None, num_classes=3).eval()
    with torch.device("meta"):
        net = create_model("alexnet_owt", num_classes=3).eval()
    net.load_state_dict(torchvision_to_ours(reference.state_dict()), assign=True)
    images = torch.randn(1, 3, 96, 130)
    with torch.no_grad():
        torch.testing.assert_close(net(images), reference(images), rtol=0, atol=1e-5)


def test_the_documented_snippet_loads_our_weights_into_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_file = pytest.importorskip("safetensors.torch").save_file
    manual = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?ours_to_torchvision.*?)```", manual, re.DOTALL)
    net = create_model("alexnet_owt", num_classes=10).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    theirs: dict[str, Any] = {}
    exec(snippet, theirs)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs["network"].eval()(image), net(image), rtol=0, atol=1e-5)
