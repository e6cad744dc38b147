"""Write a network as ONNX, torch.export or safetensors, and run it from the file."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from alexnet_exp.config.compose import group
from alexnet_exp.config.overrides import all_choices
from alexnet_exp.errors import UserError, in_one_line
from alexnet_exp.inference import LoadedClassifier
from alexnet_exp.runs.export.image import FromImages
from alexnet_exp.runs.reproduce.record import small_result
from alexnet_exp.tracking.run_reader import find_runs
from alexnet_exp.training.checkpoint.portable import metadata_of
from alexnet_exp.version import __version__
from alexnet_exp.zoo import list_models


def describe(loaded: LoadedClassifier, preprocess: bool, batch: int | None = None) -> dict[str, Any]:
    """Return the metadata that another runtime needs; `batch` is the only batch size, None for any."""
    own = loaded.preprocess.pipeline.preprocess
    augment = loaded.config["augment"]
    count = batch or "N"
    takes = f"uint8 RGB images ({count}, H, W, 3), any size"
    if not preprocess:
        takes = f"float32 ({count}, C, S, S), normalised"
    return {
        "model": model_name(loaded.config["model"], loaded.path),
        "classes": list(loaded.classes),
        "takes": takes,
        "returns": f"{'probabilities' if preprocess else 'logits'} ({count}, classes)",
        **({} if batch is None else {"batch": batch}),
        "input_size": own.image_size,
        "channels": loaded.preprocess.channels,
        "stored_size": loaded.preprocess.stored_size,
        "fit": loaded.preprocess.fit,
        "centre_crop": bool(own.crop),
        "mean": [float(value) for value in own.mean],
        "std": [float(value) for value in own.std],
        "mean_image": augment.get("mean_image") or "none",
        "whiten": bool(augment.get("whiten")),
        **({} if loaded.at_chance is None else {"at_chance": loaded.at_chance}),
        "alexnet_exp": __version__,
    }


def model_name(config: Mapping[str, Any], path: Path = Path()) -> str:
    """Return the name in conf/model of the network, or 'custom' if none has the same settings.

    Args:
        config: `model` of the settings.
        path: The checkpoint: names that occur in its path are tried first, since composing all takes seconds.
    """
    free = ("num_classes", "in_channels")
    wanted = {key: value for key, value in config.items() if key not in free}
    for name in sorted(list_models(), key=lambda name: (name not in str(path), -len(name))):
        if {key: value for key, value in group("model", name).items() if key not in free} == wanted:
            return name
    return "custom"


def write(
    loaded: LoadedClassifier,
    kind: str,
    preprocess: bool,
    metadata: Mapping[str, Any],
    path: Path,
    opset: int | None = None,
    batch: int | None = None,
) -> None:
    """Write a network and its metadata; non-string values become JSON.

    Args:
        loaded: The checkpoint.
        kind: 'onnx', 'torch_export' or 'safetensors'.
        preprocess: Include preprocessing before and softmax after the network.
        metadata: See `describe`.
        path: File to write.
        opset: Version of ONNX's operators; None for torch's default.
        batch: The only batch size; None for any.

    Raises:
        UserError: The format cannot express this network.
    """
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    if kind == "safetensors":
        from safetensors.torch import save_file

        weights = {name: tensor.contiguous() for name, tensor in loaded.model.state_dict().items()}
        save_file(weights, path, metadata=texts | _complete(loaded, weights))
        return
    with _quiet():
        program = _program(loaded, preprocess, batch)
        if kind == "torch_export":
            buffer = io.BytesIO()  # torch.export.save warns about file names that do not end in .pt2
            torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(dict(metadata))})
            path.write_bytes(buffer.getvalue())
        else:
            _write_onnx(program, preprocess, texts, path, opset, batch)


def _complete(loaded: LoadedClassifier, weights: dict[str, Tensor]) -> dict[str, str]:
    """Return the metadata that predict, evaluate and weights= need, with the record of the run if there is one."""
    own = loaded.preprocess.pipeline.preprocess
    preprocessing = {
        "image_size": own.image_size,
        "stored_size": loaded.preprocess.stored_size,
        "fit": loaded.preprocess.fit,
        "crop": bool(own.crop),
        "mean": [float(value) for value in own.mean],
        "std": [float(value) for value in own.std],
        "channels": loaded.preprocess.channels,
        "whiten": bool(loaded.config["augment"].get("whiten")),
        "mean_image": loaded.preprocess.pipeline.mean_image,
    }
    folder, record = loaded.path.parent.parent, None
    if (folder / "config.yaml").exists() and (folder / "result.json").exists():
        (run,) = find_runs([folder])
        record = small_result(run, all_choices(run.settings, run.overrides).get("experiment", "none"))
    return metadata_of(weights, loaded.config, list(loaded.classes), preprocessing, record, loaded.at_chance)


def _dynamic_axes(preprocess: bool, batch: int | None) -> dict[int, str]:
    """Return the names of the input's axes whose size is left open."""
    axes = {0: "batch"} if batch is None else {}
    return axes | {1: "height", 2: "width"} if preprocess else axes


def _program(loaded: LoadedClassifier, preprocess: bool, batch: int | None) -> ExportedProgram:
    """Trace a network with dynamic batch size unless it is given and, with preprocessing, height and width."""
    size, channels, count = loaded.preprocess.stored_size, loaded.preprocess.channels, batch or 2
    model: nn.Module = loaded.model
    if preprocess:
        pipeline = copy.deepcopy(loaded.preprocess.pipeline)
        model = FromImages(model, pipeline, size, channels, loaded.preprocess.fit).eval()
        example = torch.zeros(count, size + 2, size + 3, 3, dtype=torch.uint8)
        with torch.inference_mode(False), torch.no_grad():
            model(example)  # fills the caches of constants, which cannot be created while tracing
    else:
        side = loaded.preprocess.pipeline.preprocess.image_size
        example = torch.zeros(count, channels, side, side)
    shapes = (dict.fromkeys(_dynamic_axes(preprocess, batch), Dim.DYNAMIC),)
    try:
        return torch.export.export(model, (example,), dynamic_shapes=shapes)
    except (RuntimeError, ValueError) as error:  # the exceptions of torch._dynamo are RuntimeErrors
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"torch.export cannot trace this network ({reason}): use format=safetensors."
        ) from error


def _write_onnx(
    program: ExportedProgram,
    preprocess: bool,
    texts: Mapping[str, str],
    path: Path,
    opset: int | None,
    batch: int | None,
) -> None:
    names = ["images"], ["probabilities" if preprocess else "logits"]
    axes = _dynamic_axes(preprocess, batch)
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=names[0],
            output_names=names[1],
            opset_version=opset,
            dynamic_shapes=(axes,) if axes else None,  # of a traced program, only the names count
        )
    except RuntimeError as error:  # including torch.onnx.OnnxExporterError
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"ONNX cannot express this network ({reason}): use format=torch_export.") from error
    if exported is None:
        raise UserError("torch.onnx returned no program: use format=torch_export.")
    if opset is not None and (found := exported.model.opset_imports[""]) != opset:
        # The exporter writes for the opset that it can, and only logs it.
        raise UserError(f"opset={opset}: this network cannot be converted to it, only to opset={found}.")
    if opset is not None and opset < 18:
        for node in exported.model.graph:
            node.attributes.pop("noop_with_empty_axes", None)  # new in 18, left behind by ONNX's converter
    exported.model.metadata_props.update(texts)
    exported.model.producer_name, exported.model.producer_version = "alexnet_exp", __version__
    exported.save(str(path), external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' log messages and warnings, which are meant for their developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def reader(loaded: LoadedClassifier, kind: str, path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs the exported file with the runtime that its users will have."""
    readers = {"onnx": _onnx, "torch_export": _torch_export, "safetensors": _safetensors}
    return readers[kind](loaded, path)


def _onnx(loaded: LoadedClassifier, path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes derive from Exception alone
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} cannot load the file ({in_one_line(error)}): leave opset= out."
        ) from error
    return lambda inputs: torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0])


def _torch_export(loaded: LoadedClassifier, path: Path) -> Callable[[Tensor], Tensor]:
    with _quiet():
        return torch.export.load(io.BytesIO(path.read_bytes())).module()


def _safetensors(loaded: LoadedClassifier, path: Path) -> Callable[[Tensor], Tensor]:
    from safetensors.torch import load_file

    model = copy.deepcopy(loaded.model)
    for tensor in model.state_dict().values():
        tensor.zero_()  # so that a weight missing from the file is noticed
    model.load_state_dict(load_file(path))
    return model


def how_to_load(
    kind: str, preprocess: bool, metadata: Mapping[str, Any], name: str, checkpoint: str | Path
) -> str:
    """Return Python code that loads an exported file and, except for safetensors, runs it once.

    Args:
        kind: See `write`.
        preprocess: See `write`.
        metadata: See `describe`.
        name: Name of the file.
        checkpoint: Path of the exported checkpoint, relative to where the code runs.
    """
    if kind == "safetensors":
        network = f"alexnet_exp.load_classifier({str(checkpoint)!r}).model"
        if metadata["model"] != "custom":
            sizes = f"num_classes={len(metadata['classes'])}, in_channels={metadata['channels']}"
            network = f"alexnet_exp.create_model({metadata['model']!r}, {sizes})"
        return (
            "import alexnet_exp\nfrom safetensors.torch import load_file\n\n"
            f"network = {network}\nnetwork.load_state_dict(load_file({name!r}))\nnetwork.eval()"
        )
    side, count = metadata["input_size"], metadata.get("batch", 1)
    shape = (count, 240, 320, 3) if preprocess else (count, metadata["channels"], side, side)
    returned, dtype = ("probabilities", "uint8") if preprocess else ("logits", "float32")
    if kind == "onnx":
        modules, load = ["numpy", "onnxruntime"], f"session = onnxruntime.InferenceSession({name!r})"
        run = f'({returned},) = session.run(None, {{"images": images}})'
    else:
        modules, load = ["torch"], f"network = torch.export.load({name!r}).module()"
        run = f"{returned} = network(images)"
    example = f"images = {modules[0]}.zeros({shape}, dtype={modules[0]}.{dtype})  # {metadata['takes']}"
    return "\n".join([*[f"import {module}" for module in modules], "", load, example, run])
