"""Every network of conf/model goes through every format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alexnet_exp.config.compose import group
from alexnet_exp.inference import LoadedClassifier, Preprocessing
from alexnet_exp.runs.export.check import check
from alexnet_exp.runs.export.formats import reader, write
from alexnet_exp.zoo import create_model, list_models

pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
pytest.importorskip("onnxscript", reason="pip install -e '.[export]'")

CLASSES = 7
LARGE = [name for name in list_models() if group("model", name)["input_size"] > 64]
# Batch norm; residuals; untied weights and LRN; spatial normalisation and average pooling.
EACH_OPERATION = ("alexnet_icpm_bn", "resnet18_cifar", "convnet_13pct", "convnet_18pct")


def cases() -> list[object]:
    """Every network in every format; converting is slow, so most networks are only converted by `make test-all`."""
    found: list[object] = []
    for kind, preprocess in (("onnx", True), ("torch_export", False), ("safetensors", False)):
        for name in list_models():
            slow = name in LARGE or (kind != "safetensors" and name not in EACH_OPERATION)
            marks = [pytest.mark.slow] if slow else []
            found.append(pytest.param(name, kind, preprocess, marks=marks, id=f"{name}-{kind}"))
    return found


def untrained(name: str) -> LoadedClassifier:
    """Build a network with another mean and variance in each batch norm than those it starts with."""
    config = group("model", name)
    torch.manual_seed(0)
    model = create_model(name, num_classes=CLASSES).eval()
    for key, tensor in model.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5)
    recorded = {
        "stored_size": config["input_size"] + 3, "channels": config["in_channels"],
        "image_size": config["input_size"], "mean": [0.5] * config["in_channels"],
        "std": [0.25] * config["in_channels"], "crop": True, "mean_image": None,
    }  # fmt: skip
    classes = tuple(f"class {i}" for i in range(CLASSES))
    settings = {"model": config, "augment": {}}
    return LoadedClassifier(
        model, classes, Preprocessing(recorded, {}), settings, Path(), torch.device("cpu")
    )


@pytest.mark.parametrize(("name", "kind", "preprocess"), cases())
def test_every_network_computes_the_same_from_its_file(
    name: str, kind: str, preprocess: bool, tmp_path: Path
):
    loaded, path = untrained(name), tmp_path / "net"
    side = loaded.preprocess.stored_size
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (side, side + 9, 3), generator=generator, dtype=torch.uint8) for _ in range(3)
    ]
    write(loaded, kind, preprocess, {"classes": list(loaded.classes)}, path)
    parity = check(loaded, reader(loaded, kind, path), images, preprocess)
    assert parity.difference < 1e-4
    assert (parity.images, parity.agreeing) == (3, 3)
