"""The report page: well-formed, self-contained, safe from hostile names, and clear about what is missing."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from alexnet_exp.report import charts as report_charts
from alexnet_exp.report.evaluation import Evaluation, Sample
from alexnet_exp.report.html import duration, number, percent, quantity
from alexnet_exp.report.run import write_report
from alexnet_exp.tracking.run_reader import Point, series

ATTACK = "<script>alert(1)</script>"
QUOTES = """"' onmouseover="alert(2)" x='"""


class Page(HTMLParser):
    """Parse a page strictly: every element is closed in order, attributes are given once."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs)
        self.attributes.append((name, dict(attrs)))
        if name not in ("meta", "img", "br"):
            self.open.append(name)
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, name: str, class_: str = "") -> list[dict[str, str | None]]:
        return [
            a for n, a in self.attributes if n == name and class_ in [*(a.get("class") or "").split(), ""]
        ]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).replace("\N{NO-BREAK SPACE}", " ").split())


def make_run(folder: Path, rows: list[dict[str, float]], result: dict[str, Any] | None, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    names = sorted({name for row in rows for name in row} - {"epoch", "step"})
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", *names])
        writer.writeheader()
        writer.writerows(rows)
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


def epochs(count: int) -> list[dict[str, float]]:
    rows = []
    for epoch in range(count):
        rows += [{"epoch": epoch, "step": 10 * epoch + s, "train/loss_step": 2.0, "lr": 0.1} for s in (0, 5)]
        rows.append({"epoch": epoch, "step": 10 * epoch + 9, "val/loss": 1.25, "val/top1": 0.5 + epoch / 100})
        rows.append(
            {"epoch": epoch, "step": 10 * epoch + 9, "train/loss": 1 / (epoch + 1), "train/top1": 0.5}
        )
    return rows


def evaluation_of(
    classes: list[str], name: str = "test image 1", size: int = 8, noise: int = 3
) -> Evaluation:
    generator = np.random.default_rng(0)
    count = len(classes)
    confusion = generator.integers(0, noise, (count, count)) + 10 * np.eye(count, dtype=int)
    image = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
    sample = Sample(image, 0, min(1, count - 1), 0.875, 1, name)
    return Evaluation("test", classes, confusion, [sample] * 40, [sample] * 40)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    result = {
        "status": "finished",
        "metrics": {"test/top1": 0.9722, "test/loss": 0.1234},
        "best": {"metric": "val/top1", "value": 0.53, "epoch": 3},
        "parameters": 2472266,
        "seconds": 83.2,
        "seed": 42,
        "command": "python train.py data=digits optimizer.lr=0.1",
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "versions": {"torch": "2.15.0"},
        "hardware": {"cpu_count": 2},
    }
    config = {"seed": 42, "data": {"name": "digits"}, "optimizer": {"lr": 0.1, "momentum": 0.9}}
    overrides = ["data=digits", "optimizer.lr=0.1"]
    return make_run(tmp_path / "run", epochs(5), result, config=config, overrides=overrides)


def test_the_page_summarises_the_run(finished):
    conv1 = np.random.default_rng(0).normal(size=(16, 3, 5, 5))
    page = Page(write_report(finished, evaluation_of(["cat", "dog", "owl"]), conv1))
    expected = [
        ("test loss", "0.1234"),
        ("Weights of epoch 3, the best by validation accuracy", "(53.00 %)"),
        ("parameters", "2.47 M"),
        ("time", "1 min 23 s"),
        ("seed", "42"),
        ("git commit", "0123456789ab with uncommitted changes"),
        ("cpu count", "2"),
        ("torch", "2.15.0"),
    ]
    for label, value in expected:
        assert f"{label} {value}" in page.words
    assert "97.22 % accuracy on the test images" in Page(write_report(finished)).words
    assert "git checkout 0123456789abcdef0123456789abcdef01234567" in page.words
    assert "changes that are not in this commit" in page.words
    assert "16 colour filters of 5 × 5" in page.words
    assert len(page.all("figure", "chart")) == 3
    assert list(finished.glob(".*")) == []


def test_the_page_loads_nothing_from_the_network(finished):
    page = Page(write_report(finished, evaluation_of(["cat", "dog"]), np.ones((4, 3, 3, 3))))
    for name, attributes in page.attributes:
        assert name not in ("link", "iframe", "base", "object", "embed")
        assert "href" not in attributes
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
    assert not re.search(r"url\(|@import|https?://|//[a-z]+\.[a-z]", page.source)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_hostile_text_is_escaped(tmp_path):
    name = f"{ATTACK}{QUOTES}"
    result = {
        "status": name,
        "error": name,
        "command": name,
        "git": {"commit": name},
        "versions": {name: name},
        "hardware": {name: [name]},
        "best": {"metric": name, "value": 0.5, "epoch": 0},
        "wandb": {name: {name: name}},
    }
    run = make_run(tmp_path / "a<b>", epochs(2), result, config={name: {name: name}}, overrides=[name])
    page = Page(write_report(run, evaluation_of([name, f"$ & {name}"], name=name)))
    assert len(page.all("script")) == 1
    assert "alert" not in page.source[page.source.rindex("<script>") :]
    assert not [key for _, attributes in page.attributes for key in attributes if key.startswith("on")]
    assert page.words.count(ATTACK) > 20
    assert "a<b> · alexnet_exp" in page.words


def test_a_name_that_is_not_valid_unicode_does_not_break_the_page(tmp_path):
    page = Page(write_report(tmp_path, evaluation_of(["a", "b"], name="img\udcff.png")))
    assert "img?.png" in page.words


def test_curves_have_a_tooltip_for_every_epoch_without_a_script(finished):
    page = Page(write_report(finished))
    titles = [text for text in page.text if text.startswith("epoch ")]
    assert "epoch 2 · step 29\ntrain: 0.3333\nvalidation: 1.25" in titles
    assert (
        "epoch 4 · step 49\ntrain top-1: 50.00\N{NO-BREAK SPACE}%\nvalidation top-1: 54.00\N{NO-BREAK SPACE}%"
        in titles
    )
    assert len([title for title in titles if "validation: " in title]) == 5


def test_points_of_a_curve_match_their_values():
    rows = [{"epoch": e, "step": 10 * e, "train/loss": float(4 - e)} for e in range(5)]
    (chart,) = report_charts.run_charts(rows)
    points = [tuple(map(float, pair.split())) for pair in re.split("[ML]", chart.path(chart.lines[0]))[1:]]
    assert points == [(0, 0), (250, 100), (500, 200), (750, 300), (1000, 400)]


def test_a_curve_breaks_where_a_value_is_not_finite():
    rows = [{"epoch": e, "step": e, "train/loss": math.nan if e == 2 else 1.0} for e in range(5)]
    (chart,) = report_charts.run_charts(rows)
    assert re.sub("[^ML]", "", chart.path(chart.lines[0])) == "MLML"
    assert report_charts.not_finite(rows) == [
        "train/loss: 1 of 5 values are not finite, the first at step 2."
    ]


def test_an_isolated_value_is_drawn_as_a_dot(tmp_path):
    rows = [{"epoch": 0, "step": s, "train/loss_step": v} for s, v in ((0, 2.3), (1, math.nan))]
    (chart,) = report_charts.run_charts(rows)
    assert chart.lines[0].dotted
    page = Page(write_report(make_run(tmp_path / "run", rows, None)))
    seen, on_hover = page.all("path", "dot")
    assert seen == on_hover == {"class": "dot step behind", "d": chart.dots(chart.lines[0].finite)}


def test_a_long_curve_is_thinned_to_true_values_including_the_last():
    points = [Point(step, None, step**2) for step in range(10_007)]
    thinned = report_charts.thin(points)
    assert len(thinned) <= report_charts.MAX_POINTS
    assert thinned[-1] == points[-1]
    assert all(point in points for point in thinned[:10])
    assert report_charts.thin(points[:7]) == points[:7]
    assert report_charts.thin([]) == []


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [1e-12, 3e-12], [5.0], [1e30, 2e30], [-1.0, 0.3], [0.9712, 0.9713]]
)
def test_an_axis_covers_its_values_with_few_ticks(values):
    axis = report_charts.y_axis(values)
    assert axis.low <= min(values) + 1e-9 * abs(min(values))
    assert max(values) <= axis.high + 1e-9 * abs(max(values))
    assert 2 <= len(axis.ticks) <= 7
    assert axis.low < axis.high


@pytest.mark.parametrize("values", [[2.3027, 2.3031], [1.0, 1.0000004], [2.30, 2.31], [1000.2, 1000.4]])
def test_tick_labels_are_distinct(values):
    names = [name for _, name in report_charts.y_axis(values).ticks]
    assert len(set(names)) == len(names)
    assert [float(name.replace(",", "")) for name in names] == pytest.approx(
        [value for value, _ in report_charts.y_axis(values).ticks], abs=(values[1] - values[0]) / 100
    )


def test_a_failed_run_shows_its_error_and_how_far_it_got(tmp_path):
    rows = [
        {"epoch": 0, "step": 0, "train/loss_step": 2.3},
        {"epoch": 0, "step": 1, "train/loss_step": math.nan},
    ]
    run = make_run(
        tmp_path / "run", rows, {"status": "failed", "error": "Loss is not finite at step 1.", "best": None}
    )
    page = Page(write_report(run))
    assert "failed" in page.words
    assert "Loss is not finite at step 1." in page.words
    assert "train/loss_step: 1 of 2 values are not finite, the first at step 1." in page.words
    assert "was not evaluated" in page.words
    assert len(page.all("figure", "chart")) == 1


def test_the_page_of_an_empty_directory_says_so(tmp_path):
    page = Page(write_report(tmp_path))
    assert "unfinished" in page.words
    assert "No metric was logged." in page.words
    assert "Configuration" not in page.words


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [")
    (tmp_path / "result.json").write_text('{"status": ')
    (tmp_path / "overrides.yaml").write_text("a: b")
    (tmp_path / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    words = Page(write_report(tmp_path)).words
    for name in (
        "config.yaml cannot be read",
        "result.json cannot be read",
        "overrides.yaml was not written by a run",
        "metrics.csv cannot be read",
    ):
        assert name in words


def test_a_result_given_by_the_caller_replaces_the_file(finished):
    page = Page(write_report(finished, result={"status": "interrupted", "metrics": {"test/top1": 0.25}}))
    assert "interrupted" in page.words
    assert "25.00 %" in page.words
    assert "97.22 %" not in page.words


def test_overrides_are_marked(finished):
    page = Page(write_report(finished))
    assert ["optimizer.lr", "0.1 override"] in page.rows
    assert ["optimizer.momentum", "0.9"] in page.rows
    assert "data 1 key 1 override" in page.words


def test_secrets_do_not_reach_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "very-private-value")
    run = make_run(tmp_path, [], None, config={"logger": {"notes": "key very-private-value"}})
    page = Page(write_report(run))
    assert "very-private-value" not in page.source
    assert "logger.notes" in page.words


def test_the_page_shows_the_whole_confusion_matrix(tmp_path):
    evaluation = evaluation_of(["cat", "dog", "owl"])
    page = Page(write_report(tmp_path, evaluation))
    for i, name in enumerate(evaluation.classes):
        shown = next(row for row in page.rows if row[0] == name and len(row) == 4)
        assert [int(cell or 0) for cell in shown[1:]] == evaluation.confusion[i].tolist()
    total = evaluation.confusion[1].sum()
    share = percent(evaluation.confusion[1, 1] / total, 1)
    assert [a["title"] for a in page.all("td", "hit")][
        1
    ] == f"dog → dog: {evaluation.confusion[1, 1]} ({share} of the true class)"


def test_scores_of_an_absent_class_are_dashes(tmp_path):
    evaluation = Evaluation("val", ["seen", "absent"], np.array([[3, 0], [0, 0]]))
    page = Page(write_report(tmp_path, evaluation))
    assert ["absent", "0", "–", "–", "–"] in page.rows
    assert "100.00 % accuracy on 3 validation images" in page.words
    assert "None." in page.words


def test_hovering_over_a_matrix_image_shows_its_cells(tmp_path):
    confusion = 4 * np.eye(60, dtype=int)
    confusion[3, 5] = 2
    page = Page(write_report(tmp_path, Evaluation("test", [f"class {i}" for i in range(60)], confusion)))
    told = [text.replace("\N{NO-BREAK SPACE}", " ") for text in page.text if "of the true class" in text]
    places = [(int(a["x"] or 0), int(a["y"] or 0)) for a in page.all("rect")]
    cells = dict(zip(places, told, strict=True))
    assert len(cells) == 61
    assert cells[5, 3] == "class 3 → class 5: 2 (33.3 % of the true class)"
    assert cells[59, 59] == "class 59 → class 59: 4 (100.0 % of the true class)"


def test_hovering_over_a_dot_of_many_cells_shows_the_largest(tmp_path):
    confusion = 9 * np.eye(1000, dtype=int)
    confusion[0, 996], confusion[4, 999] = 2, 3
    page = Page(write_report(tmp_path, Evaluation("test", [f"class {i}" for i in range(1000)], confusion)))
    assert len(page.all("rect")) == 200 + 1
    assert "class 4 → class 999: 3" in page.words
    assert "class 0 → class 996: 2 (" not in page.words
    assert "5 × 5 cells" in page.words


@pytest.mark.parametrize("count", [1, 2, 50, 51])
def test_any_number_of_classes_makes_a_page(tmp_path, count):
    page = Page(write_report(tmp_path, evaluation_of([f"class {i}" for i in range(count)])))
    assert bool(page.all("table", "matrix")) == (count <= 50)
    assert bool(page.all("img", "paper")) == (count > 50)


def test_a_page_with_a_thousand_classes_and_large_images_stays_small(tmp_path):
    classes = [f"a class with quite a long name {i}" for i in range(1000)]
    evaluation = evaluation_of(classes, size=1200, noise=50)
    rows = epochs(1000)
    path = write_report(
        make_run(tmp_path / "run", rows, None),
        evaluation,
        np.random.default_rng(0).normal(size=(512, 3, 11, 11)),
    )
    page = Page(path)
    assert path.stat().st_size < 3_000_000
    assert len([row for row in page.rows if row[0].startswith("a class") and len(row) == 5]) == 15 + 1000


def test_the_report_replaces_the_old_one_only_when_it_is_complete(tmp_path):
    path = write_report(tmp_path)
    before = path.read_bytes()
    broken = evaluation_of(["a", "b"])
    broken.mistakes[0].label = 7
    with pytest.raises(IndexError):
        write_report(tmp_path, broken)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_replayed_step_counts_once():
    rows = [{"epoch": 0, "step": s, "val/loss": v} for s, v in ((4, 1.0), (9, 0.8), (9, 0.7), (2, 3.0))]
    assert [(point.step, point.value) for point in series(rows, "val/loss")] == [(2, 3.0), (4, 1.0), (9, 0.7)]


def test_numbers_are_readable():
    space = "\N{NO-BREAK SPACE}"
    assert [quantity(v) for v in (61, 99_999, 2_472_266, 714e6)] == [
        "61",
        "99,999",
        f"2.47{space}M",
        f"714{space}M",
    ]
    assert [number(v) for v in (0.12345, 3.0, 12345.6, 1e12)] == ["0.1235", "3", "12,346", "1e+12"]
    assert [duration(s) for s in (9.26, 60, 83.2, 7322)] == [
        f"9.3{space}s",
        f"1{space}min",
        f"1{space}min 23{space}s",
        f"2{space}h 2{space}min 2{space}s",
    ]
    assert percent(None) == percent(math.nan) == "–"
