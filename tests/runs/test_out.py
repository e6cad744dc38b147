"""`out=` never overwrites a checkpoint or a file of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from alexnet_exp.cli import main
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.run_directory import check_out
from tests.runs.made_runs import make_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory below the home and current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = make_run(tmp_path / "runs" / "run", 0.5)
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "best.ckpt").write_text("weights")
    return directory


@pytest.mark.parametrize("name", ["metrics.csv", "new.csv", "checkpoints/best.ckpt", "checkpoints/new.onnx"])
def test_no_file_is_written_into_a_run_directory(run: Path, name: str):
    with pytest.raises(UserError, match="is in the directory of a run: choose another folder"):
        check_out(f"~/runs/run/{name}")


@pytest.mark.parametrize("needed", ["config.yaml", "result.json"])
def test_unfinished_runs_and_evaluations_count_as_runs(run: Path, needed: str):
    for name in {"config.yaml", "result.json"} - {needed}:
        (run / name).unlink()
    with pytest.raises(UserError, match="directory of a run"):
        check_out("runs/run/table.csv")


def test_the_checkpoint_that_is_read_is_not_overwritten(run: Path):
    alone = Path("best.ckpt")
    alone.write_text("weights")
    Path("link.ckpt").symlink_to(alone)
    for name in ("best.ckpt", "./best.ckpt", "link.ckpt", "~/best.ckpt"):
        with pytest.raises(UserError, match="is the checkpoint itself: choose another name"):
            check_out(name, alone)


def test_a_folder_of_runs_is_allowed_and_a_tilde_is_the_home_directory(run: Path):
    assert check_out("~/runs/table.csv") == run.parent / "table.csv"
    assert check_out("net.onnx", run / "checkpoints" / "best.ckpt") == Path("net.onnx")


def test_compare_does_not_overwrite_the_metrics_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]):
    before = (run / "metrics.csv").read_text()
    assert main(["compare", "runs", "out=runs/run/metrics.csv", "page=false"]) == 1
    assert capsys.readouterr().err.startswith("error: out=runs/run/metrics.csv is in the directory of a run")
    assert (run / "metrics.csv").read_text() == before


def test_compare_expands_the_home_directory(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", 'runs=["~/runs"]', "out=~/table.csv", "page=false"]) == 0
    assert capsys.readouterr() == (f"table: {Path.home() / 'table.csv'}\n", "")
    assert Path("table.csv").read_text().count("\n") == 2
