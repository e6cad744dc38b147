"""Write figures.html: everything the figures show on one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_exp.tracking import figure_images, figure_layers
from alexnet_exp.tracking.figure_data import ClassMistakes, Guess, Heat, Neighbours, Picture, three_digits
from alexnet_exp.tracking.markup import Html, join, percent, tag
from alexnet_exp.tracking.pictures import data_uri
from alexnet_exp.tracking.report import heading, section, write_document
from alexnet_exp.tracking.report_classes import bars


@dataclass(frozen=True)
class Kind:
    """One kind of figure.

    Args:
        title: Its heading.
        draw: Writes the PNG, from the content and a path.
        show: Returns the content as markup; None embeds the PNG.
    """

    title: str
    draw: Callable[..., None]
    show: Callable[[Any], Html] | None = None


@dataclass
class Figure:
    """A figure that was made: its kind's name, what the drawing takes, and a sentence below the heading."""

    name: str
    content: tuple[Any, ...]
    text: str


def write_page(
    figures: Sequence[Figure], folder: Path, about: Sequence[tuple[str, str]], left_out: Mapping[str, str]
) -> Path:
    """Write folder/figures.html and return its path.

    Args:
        figures: What is on it; their PNG files lie in folder/figures already.
        folder: The run directory.
        about: Lines of the header: what, value.
        left_out: Why a figure is not there, by name.
    """
    title = f"Figures of {dict(about).get('checkpoint', 'a network')}"
    reasons = [tag("p", f"{KINDS[name].title}: {why}", class_="problem") for name, why in left_out.items()]
    sections = [
        heading("figures", title, [f"{what}: {value}" for what, value in about]),
        *[section(KINDS[each.name].title, _content(each, folder)) for each in figures],
        section("Left out", join(reasons)) if reasons else None,
    ]
    return write_document(folder / "figures.html", title, sections, "figure_page.css")


def _content(figure: Figure, folder: Path) -> Html:
    kind = KINDS[figure.name]
    if kind.show is not None:
        body = kind.show(figure.content[0])
    else:
        body = _embedded(folder / "figures" / f"{figure.name}.png", kind.title, figure.name == "filters")
    return join([tag("p", figure.text), body])


def _embedded(path: Path, title: str, narrow: bool) -> Html:
    source = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    image = tag("img", src=source, alt=title, class_="sheet narrow" if narrow else "sheet")
    return tag("div", image, class_="scroll")


def _image(picture: Picture, alt: str = "") -> Html:
    small = max(picture.image.shape[:2]) <= 96
    text = alt or picture.label
    image = tag("img", src=data_uri(picture.image), alt=text, class_="pixels" if small else None)
    return tag("div", image, class_="frame")


def _guesses(guesses: list[Guess]) -> Html:
    cards = []
    for guess in guesses:
        label = guess.picture.label
        caption = tag("figcaption", tag("span", tag("b", label)), _name(guess.picture))
        cards.append(tag("figure", _image(guess.picture), caption, bars(guess.bars, label)))
    return tag("div", *cards, class_="pictures wide")


def _name(picture: Picture) -> Html:
    return tag("small", picture.name, title=picture.name)


def _neighbours(rows: list[Neighbours]) -> Html:
    return join(tag("div", *_neighbour_row(row), class_="row") for row in rows)


def _neighbour_row(row: Neighbours) -> list[Html]:
    label = row.picture.label
    cells = [tag("figure", _image(row.picture), tag("figcaption", tag("b", label), _name(row.picture)))]
    for picture, distance in row.found:
        said = tag("span", picture.label, class_="same" if picture.label == label else None)
        below = tag("small", f"at {three_digits(distance)}", title=picture.name)
        cells.append(tag("figure", _image(picture), tag("figcaption", said, below)))
    return cells


def _mistakes(classes: list[ClassMistakes]) -> Html:
    parts = []
    for each in classes:
        share = f"{each.wrong:,} of {each.total:,} wrong ({percent(each.wrong / each.total, 1)})"
        cards = [_mistake(guess) for guess in each.guesses]
        parts += [tag("h3", each.name, " ", tag("small", share)), tag("div", *cards, class_="row cards")]
    return join(parts)


def _mistake(guess: Guess) -> Html:
    name, p = guess.bars[0]
    said = tag("span", tag("b", name), " ", percent(p, 0))
    return tag("figure", _image(guess.picture), tag("figcaption", said, _name(guess.picture)))


def _heats(heats: list[Heat]) -> Html:
    cards = []
    for heat in heats:
        over = Picture(figure_images.overlay(heat), heat.picture.label, heat.picture.name)
        pair = tag("div", _image(heat.picture), _image(over, f"what speaks for {heat.said}"), class_="pair")
        right = heat.said == heat.picture.label
        said = tag(
            "span",
            tag("b", heat.said),
            f" {percent(heat.probability, 0)}",
            class_="right" if right else "wrong",
        )
        truth = tag("span", "✓ right" if right else f"is {heat.picture.label}", class_="truth")
        cards.append(tag("figure", pair, tag("figcaption", said, truth, _name(heat.picture))))
    return tag("div", *cards, class_="pictures wide")


KINDS: dict[str, Kind] = {
    "filters": Kind("First-layer filters", figure_layers.draw_filters),
    "top5": Kind("Predictions", figure_images.draw_guesses, _guesses),
    "nearest": Kind("Nearest training images", figure_images.draw_neighbours, _neighbours),
    "grad_cam": Kind("What speaks for the prediction (Grad-CAM)", figure_images.draw_heats, _heats),
    "mistakes": Kind("Most confident mistakes of each class", figure_images.draw_mistakes, _mistakes),
    "activations": Kind("Activation maps", figure_layers.draw_maps),
    "activation_histograms": Kind("Activations", figure_layers.draw_histograms),
    "weight_histograms": Kind("Weights", figure_layers.draw_histograms),
}
