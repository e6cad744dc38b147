"""Each figure as a function from a network and its images to what the drawing takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from alexnet_exp.errors import UserError, missing_extra
from alexnet_exp.errors import nearest as nearest_name
from alexnet_exp.report.pictures import is_picture_of_filters
from alexnet_exp.runs.figures.draw import ClassMistakes, Guess, Heat, Maps, histogram
from alexnet_exp.runs.figures.nearest import nearest
from alexnet_exp.runs.figures.page import Figure
from alexnet_exp.runs.figures.subject import LeftOutError, Subject, first_towers, layers_of, responses

MAX_MAPS = 32
LEAST_SIDE = 4  # of a map that Grad-CAM looks at unasked: a heat of 2 x 2 places tells nothing
HEAT_SIDE = 200  # pixels of a heat, at least


def filters(subject: Subject) -> Figure:
    """Show the filters of the first convolution."""
    towers = first_towers(subject.network)
    if not towers or not all(is_picture_of_filters(tower) for tower in towers):
        raise LeftOutError(
            "the first layer is no convolution over grey or colour images with finite weights."
        )
    count, (height, width) = sum(map(len, towers)), towers[0].shape[2:]
    text = f"{count} filters of {height} × {width}, each stretched from its minimum to its maximum."
    if len(towers) > 1:
        text += f" Each of the {len(towers)} towers of the second convolution reads the maps of its own."
    return Figure("filters", (towers,), text)


def top5(subject: Subject) -> Figure:
    """Show the best five classes of the sampled images."""
    guesses = [subject.guess(i, p) for i, p in zip(subject.sample, subject.probabilities, strict=True)]
    right = sum(guess.right for guess in guesses)
    drawn = f"{len(guesses)} images of the {subject.split} split, drawn with seed {subject.settings['seed']}"
    text = f"{drawn}; the best class is right for {right}."
    return Figure("top5", (guesses,), text)


def neighbours(subject: Subject) -> Figure:
    """Show the training images nearest to the sampled ones."""
    rows, text = nearest(subject)
    return Figure("nearest", (rows,), text)


def worst(subject: Subject) -> Figure:
    """Show the most confident mistakes of each class."""
    classes, text = mistakes(subject)
    return Figure("mistakes", (classes,), text)


def activations(subject: Subject) -> Figure:
    """Show what the first sampled image becomes, layer by layer."""
    answers = responses(subject.network, subject.inputs[:1])
    layers = [_strongest(name, x[0]) for name, x in answers.items() if _is_map(x)]
    if not layers:
        raise LeftOutError("the network has no layer with maps.")
    text = "The image, and the maps that each layer makes of it; in a layer all are on one scale."
    return Figure("activations", (subject.picture(subject.sample[0], seen=True), layers), text)


def _is_map(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[-1] > 1


def _strongest(name: str, maps: Tensor) -> Maps:
    """Keep the maps (C, h, w) with the largest mean."""
    chosen = maps.mean((1, 2)).topk(min(MAX_MAPS, len(maps))).indices.sort().values
    return Maps(name, maps[chosen].cpu().numpy(), len(maps))


def activation_histograms(subject: Subject) -> Figure:
    """Show how the answers of each layer to the sampled images are distributed."""
    histograms = []
    for name, x in responses(subject.network, subject.inputs).items():
        values = x.cpu().numpy()
        note = f"mean {values.mean():.3g}, sd {values.std():.3g}, {np.mean(values == 0):.0%} zero"
        histograms.append(histogram(name, values, note))
    text = f"What each layer answers to the {len(subject.sample)} sampled images; counts are on a logarithmic scale."
    return Figure("activation_histograms", (histograms,), text)


def weight_histograms(subject: Subject) -> Figure:
    """Show how the weights of each layer are distributed."""
    histograms = []
    for name, weight in subject.network.named_parameters():
        if weight.ndim > 1:
            values = weight.detach().float().cpu().numpy()
            shape = " × ".join(map(str, values.shape))
            note = f"{shape}, mean {values.mean():.2g}, sd {values.std():.2g}"
            histograms.append(histogram(_layer_name(name), values, note))
    text = "The weights of each layer; counts are on a logarithmic scale."
    return Figure("weight_histograms", (histograms,), text)


def _layer_name(parameter: str) -> str:
    """Turn features.conv1.weight into conv1; a ResNet's layer1.0.conv1.weight into layer1.0.conv1."""
    name = parameter.removesuffix(".weight")
    return name.removeprefix("features.").removeprefix("classifier.")


def grad_cam(subject: Subject) -> Figure:
    """Show which places of the sampled images speak for the class that the network sees in them."""
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise LeftOutError(f"it needs {missing_extra('captum', 'figures')}") from None
    name, layer = _layer(subject)
    labels = subject.probabilities.argmax(1)
    heat = LayerGradCam(subject.network, layer).attribute(
        subject.inputs, target=labels.to(subject.device), relu_attributions=True
    )
    heats = []
    for i, index in enumerate(subject.sample):
        picture = subject.picture(index, seen=True)
        spread = _enlarged(heat[i : i + 1].detach().float().cpu(), picture.image.shape[:2])
        label = int(labels[i])
        heats.append(Heat(picture, spread, subject.classes[label], float(subject.probabilities[i, label])))
    height, width = heat.shape[2:]
    text = (
        f"Bright places speak for the class that the network sees. Layer {name}, maps of {height} × {width}."
    )
    return Figure("grad_cam", (heats,), text)


def check_layer(subject: Subject) -> None:
    """Refuse a layer that Grad-CAM cannot look at, before any image is read.

    Raises:
        UserError: If the settings name another than the network has.
    """
    if subject.settings["layer"] is None:
        return
    recorded = subject.checkpoint["preprocessing"]
    side = int(recorded["image_size"])
    blank = torch.zeros(1, int(recorded["channels"]), side, side, device=subject.device)
    with_maps = [name for name, x in responses(subject.network, blank).items() if _is_map(x)]
    if with_maps:
        _check_name(subject.settings["layer"], with_maps)


def _check_name(wanted: str, with_maps: list[str]) -> None:
    if wanted not in with_maps:
        has = ", ".join(with_maps)
        raise UserError(
            f"layer={wanted}: the network's layers with maps are {has}.{nearest_name(wanted, with_maps)}"
        )


def _layer(subject: Subject) -> tuple[str, nn.Module]:
    """Return the layer that Grad-CAM looks at.

    Raises:
        UserError: If the settings name another than the network has.
        LeftOutError: If the network has none with a map.
    """
    layers = layers_of(subject.network)
    answers = responses(subject.network, subject.inputs[:1])
    with_maps = [name for name, x in answers.items() if _is_map(x)]
    wanted = subject.settings["layer"]
    if not with_maps:
        raise LeftOutError("the network has no layer with maps.")
    if wanted is None:
        wanted = ([name for name in with_maps if answers[name].shape[-1] >= LEAST_SIDE] or with_maps)[-1]
    _check_name(wanted, with_maps)
    return wanted, layers[wanted]


def _enlarged(heat: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """Enlarge heat (1, 1, h, w), for an image of H x W pixels, to (f * H, f * W), 0 to 1."""
    factor = max(1, -(-HEAT_SIDE // max(size)))
    size = tuple(factor * side for side in size)
    large = functional.interpolate(heat, size, mode="bilinear", align_corners=False)[0, 0].numpy()
    top = float(large.max())
    return large / top if top > 0 else np.zeros_like(large)


FIGURES: dict[str, Callable[[Subject], Figure]] = {
    "filters": filters,
    "top5": top5,
    "nearest": neighbours,
    "grad_cam": grad_cam,
    "mistakes": worst,
    "activations": activations,
    "activation_histograms": activation_histograms,
    "weight_histograms": weight_histograms,
}

MAX_CLASSES, PER_CLASS = 12, 5


def mistakes(subject: Subject) -> tuple[list[ClassMistakes], str]:
    """Send the whole split through the network, and find the mistakes of which it was most certain.

    Returns:
        The classes with the largest share of mistakes, and a sentence about them.

    Raises:
        LeftOutError: If there is no mistake.
    """
    labels, said, certainty = _predicted(subject)
    wrong = labels != said
    if not wrong.any():
        raise LeftOutError(
            f"all {len(labels):,} images of the {subject.split} split are classified correctly."
        )
    totals = torch.bincount(labels, minlength=len(subject.classes))
    errors = torch.bincount(labels[wrong], minlength=len(subject.classes))
    shares = errors / totals.clamp(min=1)
    order = shares.argsort(descending=True, stable=True)[: int((errors > 0).sum())].tolist()
    found = []
    for label in order[:MAX_CLASSES]:
        mine = ((labels == label) & wrong).nonzero()[:, 0]
        top = mine[certainty[mine].argsort(descending=True, stable=True)[:PER_CLASS]]
        guesses = [_guess(subject, int(i), int(said[i]), float(certainty[i])) for i in top]
        found.append(ClassMistakes(subject.classes[label], int(errors[label]), int(totals[label]), guesses))
    text = f"{int(errors.sum()):,} of {len(labels):,} images of the {subject.split} split are misclassified."
    if len(order) > MAX_CLASSES:
        text += f" The {MAX_CLASSES} classes with the largest share of mistakes, of {len(order):,} that have some."
    return found, text


def _predicted(subject: Subject) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return label, predicted class and its probability of every image, each (N,), in the order of the split."""
    parts = []
    for batch in subject.batches(subject.split, "mistakes"):
        probabilities = subject.predict(subject.prepared(batch.images[: batch.size]))
        certainty, said = probabilities.max(1)
        indices, labels = (column[: batch.size].cpu() for column in (batch.indices, batch.labels))
        parts.append((indices, labels, said, certainty))
    indices, labels, said, certainty = (torch.cat(column) for column in zip(*parts, strict=True))
    order = indices.argsort()
    return labels[order], said[order], certainty[order]


def _guess(subject: Subject, index: int, said: int, certainty: float) -> Guess:
    return Guess(subject.picture(index), [(subject.classes[said], certainty)])
