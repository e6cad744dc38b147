"""Starting points of a run: full checkpoints (resume=, ckpt=) or only network weights (weights=)."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alexnet_exp.errors import UserError
from alexnet_exp.models.weights import torchvision_to_ours
from alexnet_exp.pretrained import shipped_file
from alexnet_exp.targets import build, check_trust
from alexnet_exp.tracking.redact import REDACTED, hidden_keys
from alexnet_exp.training.checkpoint.identity import kept_rows, preprocessing_changes
from alexnet_exp.training.checkpoint.read import (
    check_progress,
    checkpoints_before,
    is_classes,
    is_preprocessing,
    is_weights,
    read_checkpoint,
)
from alexnet_exp.training.checkpoint.safe_load import load_safely
from alexnet_exp.training.checkpoint.write import LAST, link
from alexnet_exp.training.classifier import ImageClassifier
from alexnet_exp.training.optim.build import build_optimizer

log = logging.getLogger(__name__)
# Optimizers whose state tensors have the shape of the parameter; nothing is known about custom ones.
_SHAPED = frozenset(
    ("torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW", "alexnet_exp.training.lars.LARS",
     "alexnet_exp.training.paper_sgd.PaperSGD")
)  # fmt: skip

# Keys under which training scripts store a state dict, and prefixes added by Lightning, DataParallel and FSDP.
_HOLDERS = (
    "state_dict", "model_state_dict", "model", "net", "network", "module", "model_state", "net_state_dict", "weights",
    "params", "state_dict_ema", "ema_state_dict", "model_ema", "ema",
)  # fmt: skip
_PREFIXES = ("model.", "module.", "net.", "network.", "_forward_module.")
# DataParallel's prefix; PyTorch's ImageNet example wraps only the features of an AlexNet.
_WRAPPED = re.compile(r"^(?:module\.|(features\.)module\.)")


def find_checkpoint(source: str | os.PathLike[str], name: str) -> Path:
    """Return the checkpoint file: `source` itself, or checkpoints/`name` in a run directory.

    Raises:
        UserError: If there is none.
    """
    path = Path(source)
    if not path.is_dir():
        return path
    for candidate in (path / "checkpoints" / name, path / name):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path} has no checkpoints/{name}.")


def find_network(source: str | os.PathLike[str]) -> Path:
    """Return the file of a trained network: a given file, the best of a run directory, or a pretrained one by name.

    Raises:
        UserError: If there is none.
    """
    text = os.path.expanduser(os.fspath(source))
    file = shipped_file(text)
    if not os.path.exists(text):
        return file or Path(text)
    if file is not None:
        print(
            f"{text}: using the local file, not the pretrained network of the same name.",
            file=sys.stderr,
        )
    return find_checkpoint(text, "best.ckpt")


def read_latest(source: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Read the checkpoint to continue from: a file, or the newest intact checkpoint of a run directory.

    Returns:
        The file and its content; logs a warning if it is not last.ckpt.

    Raises:
        UserError: If there is none, or none can be read (gives the reason for the first).
    """
    path = Path(source)
    if not path.is_dir():
        return path, read_checkpoint(path)
    files = [
        file
        for last in (path / "checkpoints" / LAST, path / LAST)
        if last.is_file() or checkpoints_before(last)
        for file in (last, *checkpoints_before(last).values())
    ]
    refusal = UserError(f"{path} has no checkpoints/{LAST}.")
    for number, file in enumerate(files):
        try:
            checkpoint = read_checkpoint(file)
        except UserError as error:
            refusal = refusal if number else error
            continue
        if number:
            step = checkpoint["global_step"]
            log.warning("%s Using the previous checkpoint instead: %s (step %s).", refusal, file, step)
        return file, checkpoint
    raise refusal


def put_in_place(whole: Path, last: Path) -> None:
    """Make an older, intact checkpoint last.ckpt again, in a run that is resumed in place.

    Also removes best.ckpt if it is the same file as the damaged one; the next better epoch writes it again.
    """
    best = last.with_name("best.ckpt")
    if last.exists() and best.exists() and os.path.samefile(last, best):
        best.unlink()
    link(whole, last)


def check_same_network(classifier: ImageClassifier, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of a different architecture, or one that cannot be resumed.

    Raises:
        UserError: Names the first parameter that does not match, or the malformed entry.
    """
    check_progress(checkpoint, path)
    if problem := first_mismatch(classifier.state_dict(), checkpoint["state_dict"]):
        raise UserError(f"{path} is from a different network: {problem}.")


def check_same_optimizer(
    classifier: ImageClassifier, checkpoint: Mapping[str, Any], path: Path, groups_too: bool = True
) -> None:
    """Refuse a checkpoint whose optimizer state belongs to another optimizer or to other parameter groups.

    Args:
        classifier: About to be trained.
        checkpoint: As read.
        path: Its file.
        groups_too: Whether to compare parameter groups; False if a user callback may change them.

    Raises:
        UserError: Suggests starting from the weights only.
    """
    own, theirs = classifier.optimizer_config, checkpoint["config"]["optimizer"]
    names = [str(each.get("_target_")).rpartition(".")[2] for each in (theirs, own)]
    problem = None
    if own["_target_"] != theirs.get("_target_"):
        problem = "{} there, {} here".format(*names)
    elif groups_too:
        # Only the shape of the groups matters; scaling needs a global batch, which is unknown before there is a
        # trainer.
        groups = build_optimizer(classifier.model, {**own, "lr_scaling": "none"}, fused=False).param_groups
        ours = [len(group["params"]) for group in groups]
        states = checkpoint["optimizer_states"]
        if ours != [len(group["params"]) for state in states for group in state["param_groups"]]:
            of = "optimizer.layers, layer_decay, norm_weight_decay and the bias settings"
            problem = f"its parameter groups do not match {of}"
        elif own["_target_"] in _SHAPED:
            parameters = [parameter for group in groups for parameter in group["params"]]
            problem = next(_misshapen(states[0]["state"], parameters), None)
    if problem:
        raise UserError(
            f"{path} holds the state of a different optimizer ({problem}): set weights={path} to start from its "
            "weights only."
        )


def _misshapen(state: Mapping[Any, Any], parameters: Sequence[Tensor]) -> Iterator[str]:
    """Yield state of the wrong shape, which torch's fused optimizers would read past its end, unchecked."""
    for number, values in state.items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(values, dict):
            yield f"its state {number} belongs to no parameter"
            continue
        for name, value in values.items():
            shape = torch.Size() if name == "step" else parameters[number].shape
            is_one = isinstance(value, Tensor) and value.is_floating_point() and value.shape == shape
            if value is not None and not is_one:
                yield f"{name} of parameter {number} has the wrong shape"


def first_mismatch(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str | None:
    """Describe the first tensor that is missing, has another shape or is unexpected; None if all match."""
    for name in ours:
        if name not in theirs:
            return f"it has no {name}"
        if ours[name].shape != theirs[name].shape:
            return f"{name} is {tuple(theirs[name].shape)} there and {tuple(ours[name].shape)} here"
    extra = next((name for name in theirs if name not in ours), None)
    return f"{extra} is not in this network" if extra else None


def load_weights(classifier: ImageClassifier, source: str) -> str:
    """Load the network weights of a checkpoint, a run directory or a state dict.

    A state dict may use torchvision's names, be nested under a key, or have the prefixes of common training scripts.
    Rows of the last layer are matched by class name, or by position if the names are unknown. Logs a warning if the
    weights were trained with different preprocessing.

    Args:
        classifier: Changed in place.
        source: What the user typed: a file, a run directory, or 'torchvision'.

    Returns:
        A log line: what was loaded, and how the last layer was adapted.

    Raises:
        UserError: If the file cannot be read or does not fit.
    """
    model = classifier.model
    if source == "torchvision":
        path, (weights, about) = Path("torchvision"), download(published_for(model))
    else:
        path = find_network(source)
        weights, about = _network_weights(path, model)
    own = model.state_dict()
    # Names of the network itself come first: it may have a block called `module`.
    weights = {name if name in own else _WRAPPED.sub(r"\1", name): value for name, value in weights.items()}
    if _numbered(weights) and not _numbered(own):
        weights = torchvision_to_ours(weights)
    weights, fate = fit_last_layer(weights, model, about.classes, classifier.classes)
    if problem := first_mismatch(own, weights):
        raise UserError(f"{path} is from a different network: {problem}.")
    model.load_state_dict(weights)
    if other := preprocessing_changes(about.preprocessing or {}, classifier.embed.get("preprocessing", {})):
        log.warning(
            "The weights from %s were trained with different preprocessing: %s.", path, "; ".join(other)
        )
    return f"Weights from {path}{fate}."


class _About(NamedTuple):
    """What is known about loaded weights."""

    classes: list[str] | None = None
    preprocessing: dict[str, Any] | None = None


def fit_last_layer(
    weights: dict[str, Tensor], model: nn.Module, there: list[str] | None, here: Sequence[str] = ()
) -> tuple[dict[str, Tensor], str]:
    """Match the rows of the last layer by class name; new classes keep their initial rows.

    Args:
        weights: A state dict.
        model: The network that they are for.
        there: Their class names, if known.
        here: The network's class names.

    Returns:
        The weights, and a phrase for the log line on how the last layer was adapted.
    """
    own, last = model.state_dict(), _last_layer(model)
    name = f"{last}.weight"
    if name not in weights or name not in own or weights[name].shape[1:] != own[name].shape[1:]:
        return weights, ""
    num_there, num_here = len(weights[name]), len(own[name])
    if there is None or (len(there), len(here)) != (num_there, num_here):
        if num_there == num_here:
            return weights, f"; without class names, so the rows of {last} are matched by position"
        pairs, fate = (
            dict[int, int](),
            f"is reinitialised: it has {num_here} classes, the weights {num_there}",
        )
    else:
        pairs, fate = kept_rows(there, here)
    if not fate:
        return weights, ""
    layer = {key: value.clone() for key, value in own.items() if key.startswith(f"{last}.")}
    for key, value in layer.items():
        if pairs and key in weights:
            value[list(pairs)] = weights[key][list(pairs.values())].to(value)
    return {**weights, **layer}, f"; {last} {fate}"


def _numbered(state: Mapping[str, Tensor]) -> bool:
    """Return whether the names look like torchvision's AlexNet; a custom network may use such names, too."""
    return any(name.startswith("features.0.") for name in state)


def download(published: Any) -> tuple[dict[str, Tensor], _About]:
    """Download weights published by torchvision, under its names; cached by torch.

    Raises:
        UserError: Without a network connection; gives the address, and what needs no connection.
    """
    try:
        weights = dict(published.get_state_dict(progress=False))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Cannot download torchvision's weights ({' '.join(str(error).split())}): download "
            f"{published.url} yourself and set weights=FILE, or fine-tune a network that ships trained: "
            "experiment=finetune_small."
        ) from error
    prepared = published.transforms()
    norm = {"mean": list(prepared.mean), "std": list(prepared.std), "channels": 3}
    return weights, _About(list(published.meta["categories"]), norm)


def published_for(model: nn.Module) -> Any:
    """Return the torchvision weights that fit a network (except its last layer), before any download.

    Raises:
        UserError: If none does.
    """
    from torchvision.models import AlexNet_Weights, ResNet18_Weights, get_model

    last = _last_layer(model)
    ours = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{last}.")}
    weights = {"alexnet": AlexNet_Weights.IMAGENET1K_V1, "resnet18": ResNet18_Weights.IMAGENET1K_V1}
    for name, published in weights.items():
        with torch.device("meta"):
            theirs = torchvision_to_ours(get_model(name, weights=None).state_dict())
        if not first_mismatch(ours, {k: v for k, v in theirs.items() if not k.startswith(f"{last}.")}):
            return published
    raise UserError(
        "weights=torchvision only fits alexnet_owt and resnet18 with three input channels: set model=alexnet_owt or "
        "model=resnet18, or use weights=FILE."
    )


def _network_weights(path: Path, model: nn.Module) -> tuple[dict[str, Tensor], _About]:
    """Read the state dict of a network, without the keys and prefixes that a training script puts around it."""
    if not path.is_file():
        raise UserError(
            f"There is no file {path}: set weights= to a checkpoint, a run directory, torchvision or none."
        )
    loaded = load_safely(path)
    content = _find_state_dict(loaded)
    if not content or not is_weights(content):
        raise UserError(f"{path} holds no weights: expected a dictionary of tensors.")
    # torch.compile(model), unlike model.compile(), wraps the network and adds this to every name.
    named = {name.replace("_orig_mod.", ""): value for name, value in content.items()}
    own = model.state_dict()
    # A loop, because wrappers nest: DDP around a LightningModule gives module.model.conv1.weight.
    while not own.keys() & named.keys():
        prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in named)), None)
        if prefix is None:  # a custom prefix shared by all names, such as backbone.
            first, dot, _ = next(iter(named)).partition(".")
            prefix = f"{first}{dot}"
            if not dot or not all(name.startswith(prefix) for name in named):
                break
        named = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    return named, _about(loaded) if isinstance(loaded, dict) else _About()


def _find_state_dict(content: Any) -> Any:
    """Return the state dict inside what a training script saves with its optimizer and counters."""
    for _ in range(3):  # nesting such as {'model': {'state_dict': ...}} occurs in practice
        inside = [content.get(key) for key in _HOLDERS] if isinstance(content, dict) else []
        found = [value for value in inside if isinstance(value, dict) and value]
        if not found:
            break
        content = next((value for value in found if is_weights(value)), found[0])
    return content


def _about(checkpoint: Mapping[str, Any]) -> _About:
    classes, preprocessing = checkpoint.get("classes"), checkpoint.get("preprocessing")
    return _About(
        classes if is_classes(classes) else None, preprocessing if is_preprocessing(preprocessing) else None
    )


def _last_layer(model: nn.Module) -> str | None:
    # In the order of definition. Without any (logits from a 1x1 convolution), no rows are matched and all must fit.
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def network_of(checkpoint: dict[str, Any], trust: Iterable[str] = ()) -> nn.Module:
    """Build the network of a checkpoint and load its weights (the averaged ones if the run kept an average).

    Raises:
        UserError: If its class is neither part of this package nor trusted, or the weights do not fit.
    """
    config = checkpoint["config"]["model"]
    check_trust(config, trust, "model")
    if hidden := hidden_keys({"model": config}):
        raise UserError(
            f"The checkpoint is from an older version that stored {hidden[0]} as {REDACTED}: resume it with "
            f"resume=RUN {hidden[0]}=VALUE, which records the value."
        )
    weights = {
        k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")
    }
    if str(config.get("_target_")).startswith("alexnet_exp."):
        _check_sizes(config, checkpoint, weights)
    # Initialisation draws random numbers; leave the caller's generator untouched.
    with torch.random.fork_rng(devices=[]):
        model = _built(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The checkpoint's weights do not fit its network: {reason}") from error
    return model


def _check_sizes(config: dict[str, Any], checkpoint: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Check weights and output against the network on the meta device, before allocating it: it may claim any size.

    Raises:
        UserError: Says what does not fit.
    """
    recorded, classes = checkpoint["preprocessing"], len(checkpoint["classes"])
    with torch.device("meta"):
        model = _built(config).eval()
        if problem := first_mismatch(model.state_dict(), weights):
            raise UserError(f"The checkpoint's weights do not fit its network: {problem}.")
        size, channels = recorded["image_size"], recorded["channels"]
        try:
            found = model(torch.empty(1, channels, size, size)).shape[1:]
        except Exception as error:  # torch raises many types
            reason = f"{error} ".splitlines()[0].strip().rstrip(".")
            raise UserError(
                f"The checkpoint's network does not accept its images of {size} pixels ({reason})."
            ) from error
    if tuple(found) != (classes,):
        raise UserError(
            f"The checkpoint has {classes} classes, but its network returns {list(found)} values per image."
        )


def _built(config: dict[str, Any]) -> nn.Module:
    try:
        model = build(config)
    except UserError:
        raise
    except Exception as error:  # the settings are untrusted and unchecked
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"The checkpoint's network cannot be built ({reason}).") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"The checkpoint's model, {config['_target_']}, is not an nn.Module.")
    return model
