"""Draw the figures of a run as PNG files, with matplotlib but without pyplot's global state."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from alexnet_exp.files import replacing
from alexnet_exp.report.charts import PANELS, Line, Panel
from alexnet_exp.report.evaluation import Evaluation, Sample
from alexnet_exp.report.fonts import use_fonts
from alexnet_exp.report.pictures import (
    confusion_image,
    confusion_shades,
    filter_grid,
    grouping,
    is_picture_of_filters,
    needs_white_text,
)
from alexnet_exp.tracking.metrics import is_share
from alexnet_exp.tracking.run_reader import Row, finite, series

# The colours of the HTML pages in light mode.
INK, MUTED, RULE, TRAIN, VAL = "#1d2126", "#626973", "#e3e3de", "#1f5ea8", "#cc5814"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    # Whatever the user's matplotlibrc says: class names are not LaTeX.
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
}
MAX_LABELLED, MAX_NUMBERED, MAX_PICTURES = 60, 25, 24


def draw_all(
    run_dir: Path, rows: list[Row], evaluation: Evaluation | None = None, conv1: np.ndarray | None = None
) -> list[Path]:
    """Draw every figure that has data into run_dir/figures and return their paths."""
    folder = Path(run_dir) / "figures"
    made = []
    drawn = [curve.metric for panel in PANELS if not panel.small for curve in panel.curves]
    if any(finite(series(rows, metric)) for metric in drawn):
        made.append(curves(rows, folder / "curves.png"))
    if evaluation is not None:
        if evaluation.total:
            made.append(confusion_matrix(evaluation, folder / "confusion_matrix.png"))
        for samples, name in ((evaluation.mistakes, "mistakes.png"), (evaluation.samples, "samples.png")):
            if samples:
                made.append(mistakes(samples, evaluation.classes, folder / name))
    if conv1 is not None and is_picture_of_filters(conv1):
        made.append(conv1_filters(conv1, folder / "conv1_filters.png"))
    return made


@contextmanager
def page(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of this size in inches, and save it as PNG on leaving."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # matplotlib warns at every character that it draws as a box; `use_fonts` says it once.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure
        use_fonts(figure)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


def curves(rows: list[Row], path: Path) -> Path:
    """Draw loss and accuracy over the steps of training."""
    panels = [panel for panel in PANELS if not panel.small]
    with page(path, 10, 4) as figure:
        for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
            _draw_panel(axes, rows, panel)
    return path


def _draw_panel(axes: Axes, rows: list[Row], panel: Panel) -> None:
    for metric, label, style, _ in panel.curves:
        line = Line(label, style, series(rows, metric))
        if line.finite:
            axes.plot(
                [point.step for point in line.points],
                # Infinity as NaN, at which matplotlib breaks the line.
                [point.value if math.isfinite(point.value) else math.nan for point in line.points],
                color=VAL if "val" in style else TRAIN,
                label=label,
                marker="o" if line.dotted else None,
                markersize=4,
                linewidth=1 if "behind" in style else 1.75,
                alpha=0.3 if "behind" in style else 1.0,
                linestyle="--" if "faint" in style else "-",
            )
    if is_share(panel.curves[0].metric):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel("step")
    axes.grid(axis="y")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if axes.lines:
        axes.legend(frameon=False, reverse=True)  # the curve that matters most is drawn last, on top
    else:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color=MUTED)


def confusion_matrix(evaluation: Evaluation, path: Path) -> Path:
    """Draw the confusion matrix: hits in blue, mistakes in orange, labels and counts where they fit."""
    count = len(evaluation.classes)
    side = min(max(3.5, 1.5 + 0.5 * count), 9.5)
    with page(path, side, side) as figure:
        axes = figure.subplots()
        axes.imshow(
            confusion_image(evaluation.confusion),
            interpolation="nearest",
            extent=(-0.5, count - 0.5, count - 0.5, -0.5),
        )
        group = grouping(count)
        note = f"; each dot shows the strongest of {group} × {group} cells" if group > 1 else ""
        axes.set_title(f"Confusion matrix ({evaluation.split}){note}", loc="left")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.tick_params(length=0)
        if count <= MAX_LABELLED:
            _label_classes(axes, evaluation.classes)
        if count <= MAX_NUMBERED:
            _write_counts(axes, evaluation.confusion)
    return path


def _label_classes(axes: Axes, classes: list[str]) -> None:
    names = [plain(name, 18) for name in classes]
    size = 9 if len(names) <= 25 else 6
    upright = len(names) <= 12 and max(map(len, names)) <= 3
    axes.set_xticks(range(len(names)), names, rotation=0 if upright else 90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)


def _write_counts(axes: Axes, confusion: np.ndarray) -> None:
    shades = confusion_shades(confusion)
    size = 9 if len(confusion) <= 12 else 6
    for (i, j), count in np.ndenumerate(confusion):
        if count:
            colour = "white" if needs_white_text(shades[i, j], i == j) else INK
            axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=size)


def conv1_filters(weight: np.ndarray, path: Path) -> Path:
    """Draw the filters of the first convolution as a grid, as in figure 3 of the AlexNet paper.

    Args:
        weight: (out, in, kH, kW) with `in` 1 or 3.
        path: PNG to write.
    """
    grid = filter_grid(weight)
    margin = 12
    sheet = Image.new("RGB", (grid.shape[1] + 2 * margin, grid.shape[0] + 2 * margin), "white")
    filters = Image.fromarray(grid)
    sheet.paste(filters, (margin, margin), mask=filters)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def mistakes(samples: list[Sample], classes: list[str], path: Path) -> Path:
    """Draw up to 24 images, each titled 'true -> predicted probability'."""
    samples = samples[:MAX_PICTURES]
    columns = min(6, len(samples))
    rows = math.ceil(len(samples) / columns)
    with page(path, 1.9 * columns, 2.25 * rows) as figure:
        cells = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for sample, axes in zip_longest(samples, cells):
            if sample is None:  # the rest of the last row
                axes.axis("off")
                continue
            show(axes, sample.image)
            true, predicted = plain(classes[sample.label], 20), plain(classes[sample.prediction], 14)
            text = f"{true} ->\n{predicted} {sample.probability:.1%}"
            axes.set_title(text, fontsize=8, loc="left", parse_math=False)
    return path


def plain(text: str, most: int) -> str:
    """Make text drawable: one line, valid Unicode, at most `most` characters."""
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return line if len(line) <= most else line[: most - 1] + "…"


def show(axes: Axes, image: np.ndarray) -> None:
    """Draw an image, uint8 (H, W, 1|3|4), without interpolation or axes."""
    picture = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.axis("off")
