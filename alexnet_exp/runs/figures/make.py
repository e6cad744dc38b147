"""Compute the content of each figure from a network and its images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from alexnet_exp.data.cache import places
from alexnet_exp.data.sources import ArraySource
from alexnet_exp.data.streaming.dataset import StreamSource
from alexnet_exp.errors import UserError, missing_extra, nearest
from alexnet_exp.files import replacing
from alexnet_exp.models.activations import first_towers, hidden, last_linear, layers_of, responses
from alexnet_exp.report.pictures import is_picture_of_filters
from alexnet_exp.runs.figures.draw import ClassMistakes, Guess, Heat, Maps, Neighbours, histogram
from alexnet_exp.runs.figures.page import Figure
from alexnet_exp.runs.figures.subject import LeftOutError, Subject
from alexnet_exp.version import __version__

MAX_MAPS = 32
LEAST_SIDE = 4  # of the map that Grad-CAM uses by default: a heat map of 2 x 2 shows nothing
HEAT_SIDE = 200  # minimum side of a heat map in pixels


def filters(subject: Subject) -> Figure:
    """Show the filters of the first convolution."""
    towers = first_towers(subject.network)
    if not towers or not all(is_picture_of_filters(tower) for tower in towers):
        raise LeftOutError(
            "the first layer is not a convolution of grey or colour images with finite weights."
        )
    count, (height, width) = sum(map(len, towers)), towers[0].shape[2:]
    text = f"{count} filters of {height} × {width}, each scaled from its minimum to its maximum."
    if len(towers) > 1:
        text += (
            f" Each of the {len(towers)} groups of the second convolution reads only the maps of its tower."
        )
    return Figure("filters", (towers,), text)


def top5(subject: Subject) -> Figure:
    """Show the five most probable classes of the sampled images."""
    guesses = [subject.guess(i, p) for i, p in zip(subject.sample, subject.probabilities, strict=True)]
    right = sum(guess.right for guess in guesses)
    drawn = f"{len(guesses)} images of the {subject.split} split, drawn with seed {subject.settings.seed}"
    text = f"{drawn}; the top-1 prediction is correct for {right}."
    return Figure("top5", (guesses,), text)


def activations(subject: Subject) -> Figure:
    """Show the activation maps of the first sampled image, layer by layer."""
    answers = responses(subject.network, subject.inputs[:1])
    layers = [_strongest(name, x[0]) for name, x in answers.items() if _is_map(x)]
    if not layers:
        raise LeftOutError("the network has no layer with feature maps.")
    text = "The image, and the activation maps of each layer; all maps of a layer share one scale."
    return Figure("activations", (subject.picture(subject.sample[0], seen=True), layers), text)


def _is_map(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[-1] > 1


def _strongest(name: str, maps: Tensor) -> Maps:
    """Keep the maps of (C, h, w) with the largest means, in channel order."""
    chosen = maps.mean((1, 2)).topk(min(MAX_MAPS, len(maps))).indices.sort().values
    return Maps(name, maps[chosen].cpu().numpy(), len(maps))


def activation_histograms(subject: Subject) -> Figure:
    """Show the distribution of each layer's activations on the sampled images."""
    histograms = []
    for name, x in responses(subject.network, subject.inputs).items():
        values = x.cpu().numpy()
        note = f"mean {values.mean():.3g}, sd {values.std():.3g}, {np.mean(values == 0):.0%} zero"
        histograms.append(histogram(name, values, note))
    text = f"Activations of each layer on the {len(subject.sample)} sampled images; counts on a logarithmic scale."
    return Figure("activation_histograms", (histograms,), text)


def weight_histograms(subject: Subject) -> Figure:
    """Show the distribution of each layer's weights."""
    histograms = []
    for name, weight in subject.network.named_parameters():
        if weight.ndim > 1:
            values = weight.detach().float().cpu().numpy()
            shape = " × ".join(map(str, values.shape))
            note = f"{shape}, mean {values.mean():.2g}, sd {values.std():.2g}"
            # features.conv1.weight -> conv1; a ResNet's layer1.0.conv1.weight -> layer1.0.conv1
            layer = name.removesuffix(".weight").removeprefix("features.").removeprefix("classifier.")
            histograms.append(histogram(layer, values, note))
    text = "Weights of each layer; counts on a logarithmic scale."
    return Figure("weight_histograms", (histograms,), text)


def grad_cam(subject: Subject) -> Figure:
    """Show which regions of the sampled images are evidence for the predicted class.

    Source: Selvaraju et al. 2017.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise LeftOutError(f"it needs {missing_extra('captum', 'figures')}") from None
    name, labels = grad_cam_layer(subject), subject.probabilities.argmax(1)
    heat = LayerGradCam(subject.network, layers_of(subject.network)[name]).attribute(
        subject.inputs, target=labels.to(subject.device), relu_attributions=True
    )
    heats = []
    for i, index in enumerate(subject.sample):
        picture = subject.picture(index, seen=True)
        spread = _enlarged(heat[i : i + 1].detach().float().cpu(), picture.image.shape[:2])
        label = int(labels[i])
        heats.append(Heat(picture, spread, subject.classes[label], float(subject.probabilities[i, label])))
    height, width = heat.shape[2:]
    text = f"Bright regions are evidence for the predicted class. Layer {name}, maps of {height} × {width}."
    return Figure("grad_cam", (heats,), text)


def grad_cam_layer(subject: Subject) -> str:
    """Return the layer for Grad-CAM, by default the last with maps of a useful size.

    Raises:
        UserError: The settings name a layer that the network does not have.
        LeftOutError: No layer has feature maps.
    """
    # A blank image gives the sizes: an error in the settings is then reported before any image is read.
    recorded = subject.checkpoint["preprocessing"]
    side = int(recorded["image_size"])
    blank = torch.zeros(1, int(recorded["channels"]), side, side, device=subject.device)
    sides = {name: x.shape[-1] for name, x in responses(subject.network, blank).items() if _is_map(x)}
    wanted = subject.settings.layer
    if not sides:
        raise LeftOutError("the network has no layer with feature maps.")
    if wanted is None:
        return ([name for name, side in sides.items() if side >= LEAST_SIDE] or list(sides))[-1]
    if wanted not in sides:
        raise UserError(
            f"invalid layer={wanted}: expected a layer with feature maps, one of {', '.join(sides)}."
            f"{nearest(wanted, sides)}"
        )
    return wanted


def _enlarged(heat: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """Resize heat (1, 1, h, w) of an image of H x W pixels to (f * H, f * W), scaled to 0..1."""
    # An integer multiple of the image, so that `overlay` can enlarge the image by repeating pixels.
    factor = max(1, -(-HEAT_SIDE // max(size)))
    size = tuple(factor * side for side in size)
    large = functional.interpolate(heat, size, mode="bilinear", align_corners=False)[0, 0].numpy()
    top = float(large.max())
    return large / top if top > 0 else np.zeros_like(large)


MAX_CLASSES, PER_CLASS = 12, 5


def mistakes(subject: Subject) -> Figure:
    """Show the most confident mistakes of the classes with the highest error rates.

    Raises:
        LeftOutError: There is no mistake.
    """
    labels, said, certainty = _predict_split(subject)
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
        guesses = [
            Guess(subject.picture(i), [(subject.classes[int(said[i])], float(certainty[i]))])
            for i in top.tolist()
        ]
        found.append(ClassMistakes(subject.classes[label], int(errors[label]), int(totals[label]), guesses))
    text = f"{int(errors.sum()):,} of {len(labels):,} images of the {subject.split} split are misclassified."
    if len(order) > MAX_CLASSES:
        text += (
            f" Shown are the {MAX_CLASSES} of {len(order):,} affected classes with the highest error rates."
        )
    return Figure("mistakes", (found,), text)


def _predict_split(subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
    """Return label, predicted class and its probability of every image, each (N,), in the order of the split."""
    parts = []
    for batch in subject.batches(subject.split, "mistakes"):
        probabilities = subject.predict(subject.prepared(batch.images[: batch.size]))
        certainty, said = probabilities.max(1)
        indices, labels = (column[: batch.size].cpu() for column in (batch.indices, batch.labels))
        parts.append((indices, labels, said, certainty))
    indices, labels, said, certainty = (torch.cat(column) for column in zip(*parts, strict=True))
    order = indices.argsort()  # the loader may deliver images in another order
    return labels[order], said[order], certainty[order]


# ---------------------------------------------------------------------------------------- nearest training images

NUM_NEAREST = 6
FEATURES_FORMAT = 2  # of the cached features; 1 stored them in the loader's order
BLOCK = 4096  # training images compared at once


def neighbours(subject: Subject) -> Figure:
    """Show the training images nearest to the sampled ones in the last hidden layer.

    Raises:
        LeftOutError: The network has no fully connected layer.
    """
    last = last_linear(subject.network)
    if last is None:
        raise LeftOutError("the network has no fully connected layer, and therefore no last hidden layer.")
    queries = hidden(subject.network, last, subject.inputs).cpu()
    features = training_features(subject, last)
    # A sampled training image would be its own nearest neighbour.
    own = subject.sample if subject.split == "train" else [-1] * len(subject.sample)
    rows = []
    for position, query, index in zip(subject.sample, queries, own, strict=True):
        found = search(features, query, NUM_NEAREST, leave_out=index)
        pictures = [(subject.picture(i, "train"), distance) for i, distance in found]
        rows.append(Neighbours(subject.picture(position), pictures))
    text = (
        f"The first image of each row is from the {subject.split} split, followed by its {NUM_NEAREST} nearest of "
        f"{len(features):,} training images (Euclidean distance between the {features.shape[1]:,} values of the last "
        "hidden layer)."
    )
    return Figure("nearest", (rows,), text)


def search(features: np.ndarray, query: Tensor, count: int, leave_out: int = -1) -> list[tuple[int, float]]:
    """Return (row, distance) of the rows of features (N, F) nearest to a query (F,), the nearest first.

    Args:
        features: float32; may be memory-mapped, and is read once.
        query: float32.
        count: Maximum number of rows to return.
        leave_out: A row to ignore.
    """
    distances = np.empty(len(features))
    for start in range(0, len(features), BLOCK):
        block = torch.from_numpy(np.array(features[start : start + BLOCK]))
        # Not |a|^2 + |b|^2 - 2ab, which loses its digits where images are alike.
        distances[start : start + BLOCK] = (block - query).double().square().sum(1).sqrt().numpy()
    if leave_out >= 0:
        distances[leave_out] = np.inf
    # Stable: ties are returned in the order of the data set.
    order = np.argsort(distances, kind="stable")[: min(count, len(features) - (leave_out >= 0))]
    return [(int(i), float(distances[i])) for i in order]


def training_features(subject: Subject, last: nn.Linear) -> np.ndarray:
    """Return the input of the last layer for every training image, (N, F) float32, memory-mapped from the cache."""
    path = _cache_folder(subject) / f"{fingerprint(subject)}.npy"
    if not path.exists():
        shape = (len(subject.data.sources["train"]), last.in_features)
        with replacing(path) as temporary:
            # Written in place through a memory map: those of ImageNet, 1.28 million times 4,096 floats, take 21 GB.
            features = np.lib.format.open_memmap(temporary, "w+", dtype=np.float32, shape=shape)
            for batch in subject.batches("train", "features"):
                x = hidden(subject.network, last, subject.prepared(batch.images[: batch.size]))
                features[batch.indices[: batch.size].cpu().numpy()] = x.cpu().numpy()
            features.flush()
    return np.load(path, mmap_mode="r")


def _cache_folder(subject: Subject) -> Path:
    """Return the folder for features: in paths.cache_dir if writable, else in the user's cache folder.

    Raises:
        UserError: Neither is writable.
    """
    for place in places(subject.settings.paths.cache_dir, str(subject.path.parent)):
        folder = place / "features"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue  # try the next folder
        if os.access(folder, os.W_OK):
            return folder
    raise UserError(
        "No cache folder for the features is writable: set paths.cache_dir=DIR to a writable folder."
    )


def fingerprint(subject: Subject) -> str:
    """Hash what the features depend on: the checkpoint file and the training images."""
    # Versions may preprocess differently, and devices round differently.
    digest = hashlib.sha256(f"{FEATURES_FORMAT} {__version__} {subject.device.type}".encode())
    with open(subject.path, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    source = subject.data.sources["train"]
    if isinstance(source, ArraySource):
        digest.update(source.images.contiguous().numpy().data)
    elif isinstance(source, StreamSource):
        digest.update(source.sha256.encode())
    else:  # sizes and times of the files: reading them all would take as long as the features
        for path in source.paths:
            state = os.stat(path)
            digest.update(
                f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
            )
    return digest.hexdigest()[:20]


FIGURES: dict[str, Callable[[Subject], Figure]] = {
    "filters": filters,
    "top5": top5,
    "nearest": neighbours,
    "grad_cam": grad_cam,
    "mistakes": mistakes,
    "activations": activations,
    "activation_histograms": activation_histograms,
    "weight_histograms": weight_histograms,
}
