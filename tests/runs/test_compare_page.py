"""compare.html: well-formed, self-contained, with the content of the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alexnet_exp.runs.compare.groups import Comparison
from alexnet_exp.runs.compare.page import write_page
from alexnet_exp.tracking import run_reader as compare_runs
from alexnet_exp.tracking.run_reader import Row, find_runs, read_metrics
from tests.report.test_report import ATTACK, QUOTES, Page
from tests.runs.made_runs import make_run


def page_of(folder: Path, keys: list[str]) -> Page:
    runs = find_runs([folder])
    for run in runs:
        run.differs = {key: run.config[key] for key in keys if key in run.config}
    path = folder / "compare.html"
    write_page(Comparison(runs, "test/top1", keys), path)
    return Page(path)


def made(folder: Path, configurations: int, seeds: int) -> Path:
    for lr in range(configurations):
        for seed in range(seeds):
            top1 = 0.5 + lr / 100 + seed / 1000
            make_run(folder / f"{lr}-{seed}", top1, val=[0.2, top1], seed=seed, optimizer={"lr": float(lr)})
    return folder


def test_every_run_and_configuration_is_listed(tmp_path: Path):
    page = page_of(made(tmp_path, 2, 3), ["optimizer.lr", "seed"])
    assert ["1-2", "51.20 % best", "2", "1,234", "finished", "1.0", "2"] in page.rows
    assert ["optimizer.lr=1.0", "51.10 % best", "0.10", "50.85 to 51.35 %", "3"] in page.rows
    assert "6 runs" in page.words


def test_runs_that_differ_only_in_the_seed_are_described_as_the_same(tmp_path: Path):
    page = page_of(made(tmp_path, 1, 3), ["seed"])
    assert ["the same for all runs", "50.10 % best", "0.10", "49.85 to 50.35 %", "3"] in page.rows


def test_runs_of_one_configuration_share_a_colour(tmp_path: Path):
    page = page_of(made(tmp_path, 2, 3), ["optimizer.lr", "seed"])
    curves = [a["class"] for a in page.all("path", "line")]
    assert sorted(curves) == 6 * ["line c0"] + 6 * ["line c1"]  # val/top1 and val/loss
    assert len(page.all("figure", "chart")) == 2


def test_hovering_shows_every_run_s_value_at_an_epoch(tmp_path: Path):
    page = page_of(made(tmp_path, 1, 2), ["seed"])
    titles = re.findall(r"<title>(epoch[^<]*)</title>", page.source)
    assert "epoch 2\nseed=1: 50.10\N{NO-BREAK SPACE}%\nseed=0: 50.00\N{NO-BREAK SPACE}%" in titles


def test_many_runs_are_drawn_as_the_means_of_their_seeds(tmp_path: Path):
    page = page_of(made(tmp_path, 7, 2), ["optimizer.lr", "seed"])
    assert len(page.all("path", "line")) == 2 * 7
    assert "mean over the finished seeds" in page.words
    assert "lr=6.0: 56.05\N{NO-BREAK SPACE}%" in page.source  # mean of 56.0 and 56.1


def test_mean_is_over_finished_runs_and_finite_values(tmp_path: Path):
    made(tmp_path, 7, 2)
    make_run(tmp_path / "6-failed", val=[0.9], status="failed", seed=2, optimizer={"lr": 6.0})
    make_run(tmp_path / "6-again", 0.561, val=[0.4, 0.561], seed=1, optimizer={"lr": 6.0})
    make_run(tmp_path / "6-nan", 0.5, val=[float("nan"), 0.561], seed=3, optimizer={"lr": 6.0})
    page = page_of(tmp_path, ["optimizer.lr", "seed"])
    titles = re.findall(r"<title>(epoch[^<]*)</title>", page.source)
    (first,) = [title for title in titles if title.startswith("epoch 1\n") and "%" in title]
    assert "lr=6.0: 30.00\N{NO-BREAK SPACE}%" in first  # mean of 20 and 40, without nan and the failed run
    assert any(row[0] == "optimizer.lr=6.0" and row[-1] == "3 of 4" for row in page.rows)


def test_number_of_curves_is_limited(tmp_path: Path):
    page = page_of(made(tmp_path, 14, 1), ["optimizer.lr"])
    assert len(page.all("path", "line")) == 2 * 12
    assert "The first 12 of 14 are drawn." in page.words


def test_a_run_s_own_report_is_linked(tmp_path: Path):
    made(tmp_path, 1, 2)
    (tmp_path / "0-1" / "report.html").write_text("")
    page = page_of(tmp_path, ["seed"])
    assert [a["href"] for a in page.all("a")] == ["0-1/report.html"]


def test_page_is_self_contained_and_escapes_names(tmp_path: Path):
    for i, name in enumerate((ATTACK, QUOTES)):
        make_run(tmp_path / name.replace("/", ""), 0.5, val=[0.1], data={"root": name}, seed=i)
    page = page_of(tmp_path, ["data.root", "seed"])
    assert len(page.all("script")) == 1
    assert not [a for _, a in page.attributes if any(key.startswith("on") for key in a)]
    assert not re.search(r"(?:https?:)?//\w", page.source)


@pytest.mark.parametrize("status", ["failed", None])
def test_run_without_metrics_is_listed_with_its_status(tmp_path: Path, status: str | None):
    make_run(tmp_path / "run", status=status, images_per_second=None)
    page = page_of(tmp_path, [])
    assert "No metric was logged." in page.words
    assert ["run", "–", "0" if status else "", "", status or "unfinished"] in page.rows


@pytest.mark.parametrize(("seeds", "files"), [(1, 12), (2, 24)])
def test_only_metrics_of_drawn_runs_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int, files: int
):
    read: list[Path] = []

    def counted(path: Path) -> list[Row]:
        read.append(path)
        return read_metrics(path)

    monkeypatch.setattr(compare_runs, "read_metrics", counted)
    page = page_of(made(tmp_path, 20, seeds), ["optimizer.lr", "seed"])
    assert len(set(read)) == len(read) == files
    assert "The first 12 of 20 are drawn." in page.words
