"""figures.html: well-formed, self-contained, deaf to hostile names, and silent in a browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from alexnet_exp.tracking.compare_groups import Comparison
from alexnet_exp.tracking.compare_page import write_page as write_comparison
from alexnet_exp.tracking.compare_runs import find_runs
from alexnet_exp.tracking.evaluation import Evaluation
from alexnet_exp.tracking.figure_data import ClassMistakes, Guess, Heat, Maps, Neighbours, Picture, histogram
from alexnet_exp.tracking.figure_images import overlay
from alexnet_exp.tracking.figure_page import KINDS, Figure, write_page
from alexnet_exp.tracking.report import write_report
from tests.runs.made_runs import make_run
from tests.tracking.test_report import ATTACK, QUOTES, Page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def picture(channels: int = 3) -> Picture:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, channels), dtype=np.uint8)
    return Picture(pixels, ATTACK, QUOTES)


def made(folder: Path, channels: int = 3) -> Path:
    """Draw every kind of figure, of images with hostile names, and write the page."""
    image = picture(channels)
    guess = Guess(image, [(ATTACK, 0.7), (QUOTES, 0.2)])
    content = {
        "filters": ([np.random.default_rng(0).normal(size=(4, channels, 3, 3))],),
        "top5": ([guess] * 5,),
        "nearest": ([Neighbours(image, [(image, 1.5), (image, 2.5)])],),
        "grad_cam": ([Heat(image, np.linspace(0, 1, 576).reshape(24, 24), QUOTES, 0.5)],),
        "mistakes": ([ClassMistakes(ATTACK, 1, 3, [guess])],),
        "activations": (image, [Maps(ATTACK, np.ones((3, 5, 5), np.float32), 3)]),
        "activation_histograms": ([histogram(ATTACK, np.arange(9.0))],),
        "weight_histograms": ([histogram(QUOTES, np.arange(9.0))],),
    }
    assert set(content) == set(KINDS)
    figures = [Figure(name, content[name], f"About {ATTACK}") for name in KINDS]
    for figure in figures:
        KINDS[figure.name].draw(*figure.content, folder / "figures" / f"{figure.name}.png")
    return write_page(figures, folder, [("checkpoint", ATTACK)], {"grad_cam": f"no {ATTACK}"})


@pytest.mark.parametrize("channels", [1, 3])
def test_page_shows_every_figure_and_runs_no_name(tmp_path: Path, channels: int):
    page = Page(made(tmp_path, channels))
    scripts = [attributes for name, attributes in page.attributes if name == "script"]
    assert len(scripts) == 1
    assert not any(key.startswith("on") for _, attributes in page.attributes for key in attributes)
    sources = [attributes.get("src") or "" for name, attributes in page.attributes if name == "img"]
    assert len(sources) > 10
    assert all(source.startswith("data:image/") for source in sources)
    text = "".join(page.text)
    for kind in KINDS.values():
        assert kind.title in text
    assert f"no {ATTACK}" in text
    assert "https://" not in page.source


def test_overlay_is_dark_without_heat_and_bright_with_it():
    heat = np.zeros((24, 24))
    heat[:12] = 1.0
    grey = Picture(np.full((24, 24, 3), 128, np.uint8), "a", "b")
    over = overlay(Heat(grey, heat, "a", 1.0)).astype(int).sum(-1)
    assert over.shape == (24, 24)
    assert over[:12].min() > over[12:].max() + 200


def test_overlay_is_as_fine_as_the_heat():
    over = overlay(Heat(picture(), np.linspace(0, 1, 72 * 72).reshape(72, 72), "a", 1.0))
    assert over.shape == (72, 72, 3)


needs_browser = pytest.mark.skipif(BROWSER is None or os.name == "nt", reason="no Chromium here")
# Points at the end of the first chart, and measures how much wider than the window the page is.
POINT = """
const svg = document.querySelector(".chart svg"), place = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", {clientX: place.right - 1, clientY: place.top + 5}));
document.body.dataset.beyond = document.documentElement.scrollWidth - innerWidth;
"""


def opened(path: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """Open a page in a browser without a window; return what became of it, and what the console says."""
    assert BROWSER is not None
    usual = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    words = [*usual, f"--user-data-dir={profile}", "--virtual-time-budget=2000", *options, path.as_uri()]
    done = subprocess.run([BROWSER, *words], capture_output=True, text=True, timeout=120)
    assert "scripted" in done.stdout, done.stderr  # the page's own script has run
    return done.stdout, re.findall(r".*CONSOLE.*", done.stderr)


def evaluated(folder: Path) -> Path:
    """Write a report with curves, a confusion matrix and hostile class names."""
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,epoch,train/loss,val/top1\n7,1,2.0,0.1\n14,2,1.0,0.5\n")
    (folder / "config.yaml").write_text("optimizer: {lr: 0.1}\n")
    return write_report(folder, Evaluation("test", [ATTACK, QUOTES], np.array([[3, 1], [0, 4]])))


def compared(folder: Path) -> Path:
    """Write a comparison of two runs."""
    for seed in range(2):
        make_run(folder / ATTACK.replace("/", " ") / str(seed), 0.5, val=[0.2, 0.5], seed=seed)
    write_comparison(Comparison(find_runs([folder]), "test/top1", []), folder / "compare.html")
    return folder / "compare.html"


@pytest.mark.slow
@needs_browser
def test_browser_finds_nothing_to_say_about_the_pages(tmp_path: Path):
    broken, profile = tmp_path / "broken.html", tmp_path / "profile"
    broken.write_text("<html class=scripted><script>console.error('heard')</script></html>")
    assert "heard" in "".join(opened(broken, profile)[1])  # else silence would mean nothing
    for page in (made(tmp_path / "made"), evaluated(tmp_path / "run"), compared(tmp_path / "runs")):
        assert opened(page, profile)[1] == []


@pytest.mark.slow
@needs_browser
def test_report_tells_values_under_the_pointer_and_fits_a_phone(tmp_path: Path):
    page = evaluated(tmp_path / "run")
    source = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())  # which lets no script but its own run
    page.write_text(source.replace("</body>", f"<script>{POINT}</script></body>"))
    dom, _ = opened(page, tmp_path / "profile", "--window-size=500,900")
    (tip,) = re.findall(r'<div class="tip" style="[^"]*">([^<]*)</div>', dom)
    assert tip == "epoch 2 · step 14\ntrain: 1"
    (beyond,) = re.findall(r'<body data-beyond="(.*?)"', dom)
    assert int(beyond) <= 0
