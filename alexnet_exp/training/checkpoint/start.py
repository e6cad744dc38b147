"""Starting from something: whole checkpoints, or network weights alone."""

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
# Optimizers that keep tensors of a parameter's shape; another one is the user's, and may keep what it likes.
_SHAPED = frozenset(
    ("torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW", "alexnet_exp.training.lars.LARS",
     "alexnet_exp.training.paper_sgd.PaperSGD")
)  # fmt: skip

# Where training scripts put a network's tensors, and what Lightning, DataParallel and FSDP put ahead of their names.
_HOLDERS = (
    "state_dict", "model_state_dict", "model", "net", "network", "module", "model_state", "net_state_dict", "weights",
    "params", "state_dict_ema", "ema_state_dict", "model_ema", "ema",
)  # fmt: skip
_PREFIXES = ("model.", "module.", "net.", "network.", "_forward_module.")
# What DataParallel puts into names; PyTorch's ImageNet example wraps the features of an AlexNet alone.
_WRAPPED = re.compile(r"^(?:module\.|(features\.)module\.)")


def find_checkpoint(source: str | os.PathLike[str], name: str) -> Path:
    """Return the file that `source` means: itself, or checkpoints/`name` of a run directory.

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
    """Return the file of a trained network: one that is there, the best of a run directory, or one that ships.

    Raises:
        UserError: If there is none.
    """
    text = os.path.expanduser(os.fspath(source))
    file = shipped_file(text)
    if not os.path.exists(text):
        return file or Path(text)
    if file is not None:
        print(
            f"{text}: the one in this folder is used, not the network of that name that ships.",
            file=sys.stderr,
        )
    return find_checkpoint(text, "best.ckpt")


def read_latest(source: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Read what training goes on from: a file, or of a run directory the newest checkpoint that is whole.

    Returns:
        The file that was read, and its content; a warning says so where it is not last.ckpt.

    Raises:
        UserError: There is none, or none can be read; says what is wrong with the first.
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
            log.warning("%s The checkpoint before it is used: %s, of step %s.", refusal, file, step)
        return file, checkpoint
    raise refusal


def put_in_place(whole: Path, last: Path) -> None:
    """Make a checkpoint of before last.ckpt again, where a run goes on in place.

    A best.ckpt that is the same file as the damaged one goes, too; it comes back with the next epoch that is better.
    """
    best = last.with_name("best.ckpt")
    if last.exists() and best.exists() and os.path.samefile(last, best):
        best.unlink()
    link(whole, last)


def check_same_network(classifier: ImageClassifier, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another architecture, or one that training cannot go on from.

    Raises:
        UserError: Names the first parameter that does not match, or what is not as a run writes it.
    """
    check_progress(checkpoint, path)
    problem = first_mismatch(classifier.state_dict(), checkpoint["state_dict"])
    if problem:
        raise UserError(f"{path} is of another network: {problem}.")


def check_same_optimizer(
    classifier: ImageClassifier, checkpoint: Mapping[str, Any], path: Path, groups_too: bool = True
) -> None:
    """Refuse a checkpoint whose optimizer state is another optimizer's, or of other parameter groups.

    Args:
        classifier: About to go on.
        checkpoint: As read.
        path: Of it.
        groups_too: Whether the groups are those of the settings, and no callback of the user's changes them.

    Raises:
        UserError: Says how to start from the weights alone.
    """
    own, theirs = classifier.optimizer_config, checkpoint["config"]["optimizer"]
    names = [str(each.get("_target_")).rpartition(".")[2] for each in (theirs, own)]
    problem = None
    if own["_target_"] != theirs.get("_target_"):
        problem = "{} there, {} here".format(*names)
    elif groups_too:
        groups = build_optimizer(classifier.model, {**own, "lr_scaling": "none"}, fused=False).param_groups
        ours = [len(group["params"]) for group in groups]
        states = checkpoint["optimizer_states"]
        if ours != [len(group["params"]) for state in states for group in state["param_groups"]]:
            problem = "other parameter groups than optimizer.layers and the settings of biases ask for here"
        elif own["_target_"] in _SHAPED:
            parameters = [parameter for group in groups for parameter in group["params"]]
            problem = next(_misshapen(states[0]["state"], parameters), None)
    if problem:
        raise UserError(
            f"{path} holds the state of another optimizer ({problem}): say weights={path} to start from its weights "
            "alone."
        )


def _misshapen(state: Mapping[Any, Any], parameters: Sequence[Tensor]) -> Iterator[str]:
    """Find what is not of its parameter's shape: torch's fused optimizers read past the end of it, unchecked."""
    for number, values in state.items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(values, dict):
            yield f"no parameter has the state {number}"
            continue
        for name, value in values.items():
            shape = torch.Size() if name == "step" else parameters[number].shape
            is_one = isinstance(value, Tensor) and value.is_floating_point() and value.shape == shape
            if value is not None and not is_one:
                yield f"the {name} of parameter {number} has another form"


def first_mismatch(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str | None:
    """Say which tensor is missing, of another shape or too many; None if they all agree."""
    for name in ours:
        if name not in theirs:
            return f"it has no {name}"
        if ours[name].shape != theirs[name].shape:
            return f"{name} is {tuple(theirs[name].shape)} there and {tuple(ours[name].shape)} here"
    extra = next((name for name in theirs if name not in ours), None)
    return f"{extra} is not in this network" if extra else None


def load_weights(classifier: ImageClassifier, source: str) -> str:
    """Put the network weights of a checkpoint, a run directory or a state dict into a network.

    A state dict may have torchvision's names, and lie under a key or with the prefixes that training scripts give it.
    The rows of the last layer go by the names of their classes; where those are not known, by their number. A warning
    says which other mean, standard deviation and so on the weights were trained with.

    Args:
        classifier: Changed in place.
        source: What the user typed: a file, a run directory, or 'torchvision'.

    Returns:
        A line that says what was loaded, and what became of the last layer.

    Raises:
        UserError: If the file cannot be read or does not fit.
    """
    model = classifier.model
    if source == "torchvision":
        path, (weights, about) = Path("torchvision"), _torchvision_weights(model)
    else:
        path = find_network(source)
        weights, about = _network_weights(path, model)
    own = model.state_dict()
    weights = {name if name in own else _WRAPPED.sub(r"\1", name): value for name, value in weights.items()}
    if _numbered(weights) and not _numbered(own):
        weights = torchvision_to_ours(weights)
    weights, fate = _fit_last_layer(weights, own, _last_layer(model), about.classes, classifier.classes)
    problem = first_mismatch(own, weights)
    if problem:
        raise UserError(f"{path} is of another network: {problem}.")
    model.load_state_dict(weights)
    if other := preprocessing_changes(about.preprocessing or {}, classifier.embed.get("preprocessing", {})):
        log.warning(
            "The weights from %s were trained on images prepared otherwise: %s.", path, "; ".join(other)
        )
    return f"Weights from {path}{fate}."


class _About(NamedTuple):
    """What weights bring with them besides their numbers, where it is known."""

    classes: list[str] | None = None
    preprocessing: dict[str, Any] | None = None


def _fit_last_layer(
    weights: dict[str, Tensor],
    own: Mapping[str, Tensor],
    last: str | None,
    there: list[str] | None,
    here: Sequence[str],
) -> tuple[dict[str, Tensor], str]:
    """Give every class the row of its name, and new ones the row that the network starts with.

    Returns:
        The weights, and how the last layer has changed, to follow on what they are.
    """
    name = f"{last}.weight"
    if name not in weights or name not in own or weights[name].shape[1:] != own[name].shape[1:]:
        return weights, ""
    num_there, num_here = len(weights[name]), len(own[name])
    if there is None or (len(there), len(here)) != (num_there, num_here):
        if num_there == num_here:
            return weights, f"; they have no class names, so the rows of {last} are taken in their order"
        pairs, fate = dict[int, int](), f"is new: {num_there} classes there, {num_here} here"
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
    """Return whether names are torchvision's AlexNet's; a network of the user's own may have such names, too."""
    return any(name.startswith("features.0.") for name in state)


def _torchvision_weights(model: nn.Module) -> tuple[dict[str, Tensor], _About]:
    """Download (once; torch keeps them) torchvision's ImageNet weights for alexnet_owt or resnet18."""
    published = _published_for(model)
    try:
        weights = dict(published.get_state_dict(progress=False))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's weights could not be had ({' '.join(str(error).split())}): download "
            f"{published.url} and say weights=FILE."
        ) from error
    prepared = published.transforms()
    norm = {"mean": list(prepared.mean), "std": list(prepared.std), "channels": 3}
    return weights, _About(list(published.meta["categories"]), norm)


def _published_for(model: nn.Module) -> Any:
    """Return which of torchvision's weights fit a network, its last layer aside, before any is downloaded.

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
        "weights=torchvision is for alexnet_owt and resnet18 on images of three channels, and this network has other "
        "layers: say model=alexnet_owt or model=resnet18, or give weights=FILE."
    )


def _network_weights(path: Path, model: nn.Module) -> tuple[dict[str, Tensor], _About]:
    """Read the tensors of a network, whatever a training script has put around them."""
    if not path.is_file():
        raise UserError(
            f"There is no file {path}; weights= takes a checkpoint, a run directory, torchvision or none."
        )
    loaded = load_safely(path)
    content = _unwrapped(loaded)
    if not content or not is_weights(content):
        raise UserError(f"{path} holds no weights: a dictionary of tensors is needed.")
    named = {name.replace("_orig_mod.", ""): value for name, value in content.items()}
    own = model.state_dict()
    while not own.keys() & named.keys():
        prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in named)), None)
        if prefix is None:  # a name of the user's own, such as backbone., ahead of all
            first, dot, _ = next(iter(named)).partition(".")
            prefix = f"{first}{dot}"
            if not dot or not all(name.startswith(prefix) for name in named):
                break
        named = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    return named, _about(loaded) if isinstance(loaded, dict) else _About()


def _unwrapped(content: Any) -> Any:
    """Return the dictionary of tensors in what a training script saves beside its optimizer and its counters."""
    for _ in range(3):  # {'model': {'state_dict': ...}} has been seen, more has not
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
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def network_of(checkpoint: dict[str, Any], trust: Iterable[str] = ()) -> nn.Module:
    """Build the network of a checkpoint with its weights (the averaged ones where the run averaged them).

    Raises:
        UserError: If it is of a class that is neither ours nor trusted, or the weights do not fit it.
    """
    config = checkpoint["config"]["model"]
    check_trust(config, trust, "model")
    if hidden := hidden_keys({"model": config}):
        raise UserError(
            f"The checkpoint has {hidden[0]} as {REDACTED}, as an older version kept it: train it on with "
            f"resume=RUN {hidden[0]}=VALUE, which writes it down."
        )
    weights = {
        k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")
    }
    if str(config.get("_target_")).startswith("alexnet_exp."):
        _check_sizes(config, checkpoint, weights)
    # The network's first weights are drawn, and the caller's randomness is not ours.
    with torch.random.fork_rng(devices=[]):
        model = _built(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The checkpoint's weights do not fit its own network: {reason}") from error
    return model


def _check_sizes(config: dict[str, Any], checkpoint: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Refuse a network that its own weights do not fit, before there is memory for it: it may claim any size.

    Raises:
        UserError: Says what does not fit.
    """
    recorded, classes = checkpoint["preprocessing"], len(checkpoint["classes"])
    with torch.device("meta"):
        model = _built(config).eval()
        if problem := first_mismatch(model.state_dict(), weights):
            raise UserError(f"The checkpoint's weights do not fit its own network: {problem}.")
        size, channels = recorded["image_size"], recorded["channels"]
        try:
            found = model(torch.empty(1, channels, size, size)).shape[1:]
        except Exception as error:  # torch's own, of many kinds
            reason = f"{error} ".splitlines()[0].strip().rstrip(".")
            raise UserError(
                f"The checkpoint's network cannot take its images of {size} pixels ({reason})."
            ) from error
    if tuple(found) != (classes,):
        raise UserError(
            f"The checkpoint names {classes} classes, and its network gives {list(found)} values."
        )


def _built(config: dict[str, Any]) -> nn.Module:
    try:
        model = build(config)
    except UserError:
        raise
    except Exception as error:  # the settings are anybody's, and have not been checked
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"The checkpoint's network cannot be built ({reason}).") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"The checkpoint's model is no network but {config['_target_']}.")
    return model
