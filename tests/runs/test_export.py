"""`alexnet-exp export`: what another runtime computes from the file is what PyTorch computes."""

from __future__ import annotations

import html
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alexnet_exp.cli import main
from alexnet_exp.data.augment.geometry import Preprocess
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.decode import luma, stored
from alexnet_exp.inference import LoadedClassifier, load_classifier
from alexnet_exp.runs.export import command as verb
from alexnet_exp.runs.export.check import _in_batches
from alexnet_exp.runs.export.formats import how_to_load, model_name
from alexnet_exp.runs.export.image import FromImages
from alexnet_exp.runs.train.command import train
from alexnet_exp.zoo import create_model
from tests.report.test_report import Page
from tests.training.small_runs import NARROW, run, settings

onnx = pytest.importorskip("onnx", reason="pip install -e '.[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
pytest.importorskip("onnxscript", reason="pip install -e '.[export]'")

FOLDER = [
    "model=alexnet_cifar", "data=folder", "trainer=cpu", "trainer.max_epochs=1", "logger=csv", "test=false",
    "callbacks.progress_bar.enabled=false", "callbacks.model_summary.enabled=false",
]  # fmt: skip
SIZES = [(8, 8), (20, 8), (8, 31), (9, 12), (33, 17), (3, 5), (200, 9), (100, 80), (75, 100), (1, 40)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("export") / "run"
    run(run_dir, "data.batch_size=20", "model.features.conv1.then=[relu,lrn,max_pool]", "optimizer.lr=0.1")
    return run_dir


@pytest.fixture(scope="module")
def loaded(trained: Path) -> LoadedClassifier:
    return load_classifier(trained, device="cpu")


@pytest.fixture(scope="module")
def exported(trained: Path) -> dict[str, Path]:
    """Directories of an export to ONNX, and of one to torch.export with preprocessing."""
    folders = {}
    for kind, preprocess in (("onnx", "false"), ("torch_export", "true")):
        out = trained.parent / kind
        typed = [f"format={kind}", f"preprocess={preprocess}", f"paths.output_dir={out}"]
        assert main(["export", str(trained), *typed]) == 0
        (folders[kind],) = (out / "export").iterdir()
    return folders


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def export(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(["export", *arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["export", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def left() -> list[str]:
    """Return the files of the current folder."""
    return [path.name for path in Path.cwd().rglob("*") if path.is_file()]


def images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def own_probabilities(loaded: LoadedClassifier, batch: np.ndarray) -> np.ndarray:
    return loaded.probabilities(torch.stack([loaded.preprocess.stored(image) for image in batch])).numpy()


def test_onnx_gives_pytorch_s_logits_for_any_batch(exported: dict[str, Path], loaded: LoadedClassifier):
    session = onnxruntime.InferenceSession(exported["onnx"] / "model.onnx")
    for count in (1, 3, 17):
        x = torch.randn(count, 3, 32, 32)
        (found,) = session.run(None, {"images": x.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(found, loaded.model(x).numpy(), atol=1e-4)


def test_onnx_with_preprocessing_takes_images_of_any_size(
    trained: Path, loaded: LoadedClassifier, capsys: pytest.CaptureFixture[str]
):
    export(capsys, str(trained), "preprocess=true", "out=net.onnx")
    session = onnxruntime.InferenceSession("net.onnx")
    for height, width in SIZES[:6]:
        batch = images(2, height, width)
        (found,) = session.run(None, {"images": batch})
        np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-5)
        np.testing.assert_allclose(found, own_probabilities(loaded, batch), atol=1e-5)


def test_the_dynamic_axis_of_onnx_is_named_batch(exported: dict[str, Path]):
    session = onnxruntime.InferenceSession(exported["onnx"] / "model.onnx")
    assert [value.shape[0] for value in (*session.get_inputs(), *session.get_outputs())] == ["batch", "batch"]


@pytest.mark.parametrize(("preprocess", "batch"), [(False, 1), (True, 2)])
def test_an_older_opset_and_a_fixed_batch_give_the_same_in_onnxruntime(
    trained: Path, loaded: LoadedClassifier, capsys: pytest.CaptureFixture[str], preprocess: bool, batch: int
):
    typed = ["opset=17", f"batch={batch}", f"preprocess={str(preprocess).lower()}", "out=net.onnx"]
    assert "32 of 32 images" in export(capsys, str(trained), *typed)
    model = onnx.load("net.onnx")
    assert [entry.version for entry in model.opset_import if not entry.domain] == [17]
    session = onnxruntime.InferenceSession("net.onnx")
    shapes = [value.shape for value in (*session.get_inputs(), *session.get_outputs())]
    assert shapes == [[2, "height", "width", 3] if preprocess else [1, 3, 32, 32], [batch, 10]]
    if preprocess:
        pictures = images(batch, 30, 21)
        (found,) = session.run(None, {"images": pictures})
        np.testing.assert_allclose(found, own_probabilities(loaded, pictures), atol=1e-5)
    else:
        x = torch.randn(batch, 3, 32, 32)
        (found,) = session.run(None, {"images": x.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(found, loaded.model(x).numpy(), atol=1e-4)


def test_a_fixed_batch_is_checked_with_that_batch_and_no_image_twice():
    sizes = []

    def run(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return 2 * x

    x = torch.arange(7.0).view(7, 1)
    assert torch.equal(_in_batches(run, x, 3), 2 * x)
    assert sizes == [3, 3, 3]


def test_torch_export_with_preprocessing_takes_images_of_any_size(
    exported: dict[str, Path], loaded: LoadedClassifier
):
    module = torch.export.load(exported["torch_export"] / "model.pt2").module()
    for count, (height, width) in enumerate(SIZES, 1):
        batch = images(count, height, width)
        with torch.inference_mode():
            found = module(torch.from_numpy(batch)).numpy()
        np.testing.assert_allclose(found, own_probabilities(loaded, batch), atol=1e-6)


def test_safetensors_holds_the_weights_bit_by_bit(
    trained: Path, loaded: LoadedClassifier, capsys: pytest.CaptureFixture[str]
):
    from safetensors import safe_open

    said = export(capsys, str(trained), "format=safetensors", "out=a net.safetensors")
    assert "same top-1 for 32 of 32 images (32 images of the test split)" in said
    assert left() == ["a net.safetensors"]
    with safe_open("a net.safetensors", framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        metadata = file.metadata()
    wanted = loaded.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert json.loads(metadata["classes"]) == [str(digit) for digit in range(10)]


def metadata_of(kind: str, folder: Path) -> dict[str, Any]:
    if kind == "torch_export":
        extra = {"metadata.json": ""}
        torch.export.load(folder / "model.pt2", extra_files=extra)
        return json.loads(extra["metadata.json"])
    texts = onnxruntime.InferenceSession(folder / "model.onnx").get_modelmeta().custom_metadata_map
    words = ("takes", "returns", "model", "mean_image", "alexnet_exp", "fit")
    return {key: text if key in words else json.loads(text) for key, text in texts.items()}


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_the_file_tells_classes_and_normalisation(kind: str, exported: dict[str, Path]):
    result = json.loads((exported[kind] / "result.json").read_text())
    metadata = metadata_of(kind, exported[kind])
    assert metadata.items() >= {
        "classes": [str(digit) for digit in range(10)], "model": "custom",
        "input_size": 32, "channels": 3, "stored_size": 8, "centre_crop": False,
        "mean": [0.305] * 3, "std": [0.376] * 3, "whiten": False, "mean_image": "none",
    }.items()  # fmt: skip
    assert metadata["takes"].startswith("uint8" if kind == "torch_export" else "float32")
    assert result["metadata"] == metadata
    assert result["parity"]["agreeing"] == result["parity"]["images"] == 32


def run_code(code: str) -> dict[str, Any]:
    """Run Python, and return the names that it made."""
    names: dict[str, Any] = {}
    exec(compile(code, "page", "exec"), names)
    return names


@pytest.mark.parametrize(("kind", "returned"), [("onnx", "logits"), ("torch_export", "probabilities")])
def test_the_page_holds_code_that_runs_the_file(
    kind: str, returned: str, exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    page = Page(exported[kind] / "report.html")
    assert "32 of 32 images" in page.words
    (code,) = re.findall(r"<code>(import .*?)</code>", page.source, re.DOTALL)
    monkeypatch.chdir(exported[kind])
    assert run_code(html.unescape(code))[returned].shape == (1, 10)


@pytest.mark.parametrize("model", ["custom", "alexnet_cifar"])
def test_the_code_for_weights_alone_fills_the_network(model: str, trained: Path):
    from safetensors.torch import save_file

    metadata = {"model": model, "classes": list("0123456789"), "channels": 3}
    network = create_model(model, num_classes=10) if model != "custom" else load_classifier(trained).model
    save_file({name: tensor + 1 for name, tensor in network.state_dict().items()}, "it's.safetensors")
    found = run_code(how_to_load("safetensors", False, metadata, "it's.safetensors", trained))["network"]
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name] + 1)
    assert not found.training


def test_the_page_of_weights_alone_names_no_folder_of_the_machine(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(trained.parent)
    # None of conf/model builds it; to find that out takes seconds.
    monkeypatch.setattr("alexnet_exp.runs.export.formats.model_name", lambda *_: "custom")
    said = export(capsys, "run", "format=safetensors", "paths.output_dir=weights")
    (folder,) = Path("weights/export").iterdir()
    assert f"report: {folder}/report.html\n" in said and f"exported: {folder}/model.safetensors" in said
    page = Page(folder / "report.html")
    assert str(trained) not in page.source
    (code,) = re.findall(r"<code>(import .*?)</code>", page.source, re.DOTALL)
    monkeypatch.chdir(folder)
    found = run_code(html.unescape(code))["network"].state_dict()
    assert all(torch.equal(found[name], t) for name, t in load_classifier(trained).model.state_dict().items())


@pytest.mark.parametrize("kind", ["torch_export", "safetensors"])
def test_a_file_that_computes_something_else_is_not_left(
    kind: str, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from alexnet_exp.runs.export import formats as export_formats

    write = export_formats.write

    def write_other_weights(loaded: LoadedClassifier, *arguments: Any) -> None:
        with torch.no_grad():
            loaded.model.classifier.fc8.bias += 0.001  # type: ignore[operator, union-attr]
        write(loaded, *arguments)
        with torch.no_grad():
            loaded.model.classifier.fc8.bias -= 0.001  # type: ignore[operator, union-attr]

    monkeypatch.setattr(export_formats, "write", write_other_weights)
    Path("old").write_text("an older export")
    said = refused(capsys, str(trained), f"format={kind}", "out=old")
    assert "does not match PyTorch: largest difference 0.001" in said
    assert Path("old").read_text() == "an older export"
    assert left() == ["old"]


def test_without_the_data_noise_is_compared_and_it_is_said(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["config"]["data"] |= {"_target_": "alexnet_exp.data.CIFAR10", "data_dir": "nowhere"}
    torch.save(checkpoint, "alone.ckpt")
    said = export(capsys, "alone.ckpt", "format=safetensors", "out=net.safetensors")
    assert "seeded noise, because the checkpoint's data cannot be read" in said
    assert not Path("nowhere").exists()


def test_images_of_a_folder_are_compared_in_their_own_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(images(1, 40 + 7 * i, 60 - 5 * i)[0])
                picture.save(tmp_path / "photos" / split / name / f"{i}.png")
    data = [f"data.root={tmp_path / 'photos'}", "data.batch_size=4", "data.num_workers=0"]
    config, typed = settings(*data, base=[*NARROW, *FOLDER])
    train(config, typed, tmp_path / "run", "python train.py")
    capsys.readouterr()
    said = export(capsys, "run", "preprocess=true", "format=torch_export", "out=net.pt2")
    assert "same top-1 for 6 of 6 images (6 images of the val split)" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.ckpt"], "ckpt=nowhere.ckpt: there is no such file or run directory."),
        (
            ["RUN", "format=tflite"],
            "format='tflite': expected one of onnx, torch_export, safe",
        ),
        (
            ["RUN", "format=safetensors", "preprocess=true"],
            "preprocess=true needs format=onnx or torch_export",
        ),
        (
            ["RUN", "preprocess=yes please"],
            "preprocess='yes please': expected true or false",
        ),
        (["RUN", "format=torch_export", "opset=17"], "format=torch_export has no opset: leave opset out"),
        (["RUN", "format=safetensors", "batch=2"], "batch= needs format=onnx or torch_export"),
        (["RUN", "opset=99"], "opset=99: this network cannot be converted to it, only to opset=18"),
        (["RUN", "forma=onnx"], "There is no setting forma. Did you mean format"),
        (
            ["RUN/checkpoints/best.ckpt", "out=RUN/checkpoints/best.ckpt"],
            "best.ckpt is the checkpoint itself",
        ),
        (["RUN", "format=safetensors", "out=RUN/train.log"], "train.log is in the directory of a run"),
        (["RUN", "format=safetensors", "out=/dev/null/net"], "/dev/null/net cannot be written"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
):
    assert said in refused(capsys, *[word.replace("RUN", str(trained)) for word in arguments])
    assert left() == []


def test_a_missing_package_is_named_with_what_to_install(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(verb.importlib.util, "find_spec", lambda n: None if n == "onnxscript" else find(n))
    said = refused(capsys, str(trained))
    assert said.startswith("error: format=onnx needs onnxscript: pip install -e '")


class Flat(torch.nn.Module):
    """A network that shows what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).log()  # softmax of the logarithm: each pixel's share of the sum


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 57, 64])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_exported_resize_is_that_of_the_data_bit_by_bit(
    height: int, width: int, size: int, channels: int
):
    image = torch.from_numpy(images(1, height, width)[0])
    planes = image.permute(2, 0, 1)
    expected = stored(luma(planes) if channels == 1 else planes, size).double() + 1.0
    pipeline = Pipeline(Preprocess(size, [-1 / 255] * channels, [1 / 255] * channels), {})  # pixel + 1
    found = FromImages(Flat(), pipeline, size, channels)(image[None]).double()[0]
    found *= expected.sum() / found.sum()
    assert torch.equal(found.round(), expected.flatten())


def test_a_network_is_named_after_its_file():
    from alexnet_exp.config.compose import group

    for name in ("alexnet_cifar", "resnet18_cifar"):
        path = Path(f"2026-01-01_{name}_digits") / "best.ckpt"
        assert model_name({**group("model", name), "num_classes": 7}, path) == name
    changed = group("model", "alexnet_cifar")
    changed["features"]["conv1"]["out_channels"] = 5
    assert model_name(changed) == "custom"
    assert create_model("alexnet_cifar", num_classes=2) is not None
