"""All pages that this package writes: light, dark and printed, without messages in a browser console."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from alexnet_exp.report.evaluation import Evaluation
from alexnet_exp.report.run import write_report
from alexnet_exp.runs.compare.groups import Comparison
from alexnet_exp.runs.compare.page import write_page as write_comparison
from alexnet_exp.tracking.run_reader import find_runs
from tests.report.test_export_page import exported
from tests.report.test_figure_page import made
from tests.report.test_predict_page import predicted
from tests.report.test_report import ATTACK, QUOTES
from tests.runs.made_runs import make_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGES = ("report", "many classes", "figures", "compare", "predict", "export")


def evaluated(folder: Path, classes: int = 2) -> Path:
    """Write a report with curves, a confusion matrix and hostile class names."""
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,epoch,train/loss,val/top1\n7,1,2.0,0.1\n14,2,1.0,0.5\n")
    (folder / "config.yaml").write_text("optimizer: {lr: 0.1}\n")
    names = [ATTACK, QUOTES, *[f"class {i}" for i in range(2, classes)]]
    return write_report(folder, Evaluation("test", names, np.eye(classes, dtype=int) * 3 + 1))


def compared(folder: Path) -> Path:
    """Write a comparison of two runs."""
    for seed in range(2):
        make_run(folder / ATTACK.replace("/", " ") / str(seed), 0.5, val=[0.2, 0.5], seed=seed)
    write_comparison(Comparison(find_runs([folder]), "test/top1", []), folder / "compare.html")
    return folder / "compare.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        "report": evaluated(folder / "report"),
        "many classes": evaluated(folder / "many", classes=60),
        "figures": made(folder / "figures"),
        "compare": compared(folder / "compare"),
        "predict": predicted(folder / "predict"),
        "export": exported(folder / "export"),
    }


# ----------------------------------------------------------------------------------------------------- look


@pytest.mark.parametrize("name", PAGES)
def test_every_colour_is_defined_for_light_and_dark_mode(pages: dict[str, Path], name: str):
    (style,) = re.findall(r"<style>(.*?)</style>", pages[name].read_text(encoding="utf-8"), re.DOTALL)
    dark = r"@media screen and \(prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}\s*\}"
    in_dark = re.findall(r"(--[\w-]+):", "".join(re.findall(dark, style, re.DOTALL)))
    in_light = re.findall(r"(--[\w-]+):", "".join(re.findall(r"^:root \{(.*?)\}", style, re.DOTALL | re.M)))
    assert sorted(in_light) == sorted(in_dark)
    used = set(re.findall(r"var\((--[\w-]+)\)", style))
    assert used - {"--v", "--cell", "--name"} <= set(in_light)  # set on a cell or table


@pytest.mark.parametrize("name", PAGES)
def test_every_page_can_be_printed(pages: dict[str, Path], name: str):
    source = pages[name].read_text(encoding="utf-8")
    assert re.search(r"@media print \{\s*body \{ background: #fff;", source)
    assert "beforeprint" in source  # which expands folded sections


# -------------------------------------------------------------------------------------------------- browser

needs_browser = pytest.mark.skipif(BROWSER is None or os.name == "nt", reason="no Chromium here")
DARK = "--blink-settings=preferredColorScheme=0"
# Hovers over the end of the first chart, and measures by how much the page is wider than the window.
POINT = """
const svg = document.querySelector(".chart svg"), place = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", {clientX: place.right - 1, clientY: place.top + 5}));
document.body.dataset.beyond = document.documentElement.scrollWidth - innerWidth;
"""
GROUND = "document.body.dataset.ground = getComputedStyle(document.body).backgroundColor;"


def opened(path: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """Open a page in a headless browser; return the resulting DOM and the console messages."""
    assert BROWSER is not None
    usual = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    words = [*usual, f"--user-data-dir={profile}", "--virtual-time-budget=2000", *options, path.as_uri()]
    done = subprocess.run([BROWSER, *words], capture_output=True, text=True, timeout=120)
    assert "scripted" in done.stdout, done.stderr  # the page's own script has run
    return done.stdout, re.findall(r".*CONSOLE.*", done.stderr)


def with_script(page: Path, script: str, copy: Path) -> Path:
    """Copy a page and add a script."""
    source = page.read_text(encoding="utf-8")
    source = re.sub(r"<meta http-equiv[^>]*>", "", source)  # which allows only the page's own script
    copy.write_text(source.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return copy


@pytest.mark.slow
@needs_browser
def test_pages_cause_no_console_messages(pages: dict[str, Path], tmp_path: Path):
    broken, profile = tmp_path / "broken.html", tmp_path / "profile"
    broken.write_text("<html class=scripted><script>console.error('heard')</script></html>")
    assert "heard" in "".join(opened(broken, profile)[1])  # otherwise silence would prove nothing
    for page in pages.values():
        assert opened(page, profile)[1] == []


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_dark_in_dark_mode_and_can_be_printed(pages: dict[str, Path], tmp_path: Path, name: str):
    copy = with_script(pages[name], GROUND, tmp_path / "copy.html")
    printed = tmp_path / "page.pdf"
    dom, said = opened(copy, tmp_path / "profile", DARK, f"--print-to-pdf={printed}")
    (ground,) = re.findall(r'data-ground="rgb\((.*?)\)"', dom)
    assert max(int(value) for value in ground.split(",")) < 64
    assert said == []
    assert printed.read_bytes().startswith(b"%PDF")


@pytest.mark.slow
@needs_browser
def test_report_shows_values_under_the_pointer_and_fits_a_phone(pages: dict[str, Path], tmp_path: Path):
    page = with_script(pages["report"], POINT, tmp_path / "report.html")
    dom, _ = opened(page, tmp_path / "profile", "--window-size=500,900")
    (tip,) = re.findall(r'<div class="tip" style="[^"]*">([^<]*)</div>', dom)
    assert tip == "epoch 2 · step 14\ntrain: 1"
    (beyond,) = re.findall(r'<body data-beyond="(.*?)"', dom)
    assert int(beyond) <= 0
