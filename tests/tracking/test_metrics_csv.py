from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from alexnet_exp.tracking.metrics_csv import MetricsCSV
from alexnet_exp.tracking.run_reader import read_metrics


def text(run_dir: Path) -> str:
    return (run_dir / "metrics.csv").read_text()


def test_each_call_is_one_row_with_epoch_and_step_first(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"val/top1": 0.5, "epoch": 0, "lr": 0.1}, step=7)
    logger.log_metrics({"val/top1": 0.75, "epoch": 1}, step=15)
    assert text(tmp_path) == "epoch,step,lr,val/top1\n0,7,0.1,0.5\n1,15,,0.75\n"


def test_a_run_without_metrics_has_an_empty_table(tmp_path: Path) -> None:
    assert MetricsCSV(tmp_path / "new" / "run").rows() == []
    assert text(tmp_path / "new" / "run") == "epoch,step\n"


def test_numbers_read_back_bit_for_bit(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 2**64, size=300, dtype=np.uint64).view(np.float64)
    values = [v for v in bits.tolist() if math.isfinite(v)] + [
        5e-324,
        -0.0,
        math.inf,
        -math.inf,
        1e22,
        0.1 + 0.2,
    ]
    logger = MetricsCSV(tmp_path)
    for step, value in enumerate(values):
        logger.log_metrics({"train/loss": value, "epoch": 0}, step=step)
    read = [row["train/loss"] for row in read_metrics(tmp_path / "metrics.csv")]
    assert [v.hex() for v in read] == [v.hex() for v in values]


def test_nan_is_a_value_and_not_a_gap(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"train/loss": math.nan, "epoch": 0}, step=0)
    assert math.isnan(logger.rows()[0]["train/loss"])


@pytest.mark.parametrize("value", [np.float32(0.1), torch.tensor(0.1), np.float64(float(np.float32(0.1)))])
def test_numpy_and_torch_scalars_are_written_as_plain_floats(tmp_path: Path, value: float) -> None:
    MetricsCSV(tmp_path).log_metrics({"lr": value}, step=0)
    assert text(tmp_path).splitlines()[1] == ",0,0.10000000149011612"


def test_a_new_metric_widens_the_table_and_keeps_every_row(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=0)
    logger.log_metrics({"lr": 0.1, "epoch": 0}, step=1)
    logger.log_metrics({"train/loss": 1.0, "epoch": 0}, step=2)
    assert text(tmp_path).startswith("epoch,step,lr,train/loss\n")
    assert logger.rows() == [
        {"epoch": 0, "step": 0, "train/loss": 2.0},
        {"epoch": 0, "step": 1, "lr": 0.1},
        {"epoch": 0, "step": 2, "train/loss": 1.0},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]  # no temporary file left


def test_any_csv_reader_reads_it(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({'odd, "name"': 1.5, "epoch": 0}, step=3)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"epoch": "0", "step": "3", 'odd, "name"': "1.5"}]
    assert logger.rows() == [{"epoch": 0, "step": 3, 'odd, "name"': 1.5}]


def test_a_row_is_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    for step in range(5):
        logger.log_metrics({"lr": 0.1, "epoch": 0}, step=step)
        assert len(read_metrics(tmp_path / "metrics.csv")) == step + 1


def test_a_resumed_run_drops_a_truncated_last_line(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    for step in range(3):
        logger.log_metrics({"lr": 0.125, "epoch": 0}, step=step)
    whole = text(tmp_path)
    last_line = len("0,2,0.125\n")
    for cut in range(1, last_line + 1):
        (tmp_path / "metrics.csv").write_text(whole[:-cut])
        assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [0, 1]
        resumed = MetricsCSV(tmp_path)
        resumed.log_metrics({"lr": 0.125, "epoch": 0}, step=2)
        assert text(tmp_path) == whole


@pytest.mark.parametrize("torn", ["", "epo", "epoch,step,lr"])
def test_a_file_truncated_inside_its_header_reads_as_empty(tmp_path: Path, torn: str) -> None:
    (tmp_path / "metrics.csv").write_text(torn)
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"lr": 0.5, "epoch": 0}, step=0)
    assert text(tmp_path) == "epoch,step,lr\n0,0,0.5\n"


def test_truncate_drops_what_a_resumed_run_replays(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    for step in range(6):
        logger.log_metrics({"train/loss": 1.0 / (step + 1), "epoch": step // 2}, step=step)
    before = logger.rows()
    resumed = MetricsCSV(tmp_path)
    resumed.truncate(3)
    assert resumed.rows() == before[:4]
    for row in before[4:]:
        resumed.log_metrics({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))
    assert resumed.rows() == before


def test_truncate_keeps_rows_of_the_last_step_written_before_the_checkpoint(
    tmp_path: Path,
) -> None:
    logger = MetricsCSV(tmp_path)
    # With gradient accumulation, the last row is of the next epoch.
    for step, loss in ((1, 0.5), (2, 0.4), (2, 0.3)):
        logger.log_metrics({"val/loss": loss, "epoch": 1}, step=step)
    resumed = MetricsCSV(tmp_path)
    assert resumed.num_rows == 3
    resumed.truncate(2, 2)
    assert [row["val/loss"] for row in resumed.rows()] == [0.5, 0.4]
    resumed.truncate(2, 0)  # earlier steps are always kept
    assert [row["val/loss"] for row in resumed.rows()] == [0.5]
    assert resumed.num_rows == 1


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = MetricsCSV(tmp_path / "run")
    logger.log_metrics({"lr": 0.1, "epoch": 0}, step=0)
    logger.truncate(0)
    logger.log_hyperparams({"lr": 0.1})
    assert not (tmp_path / "run").exists()


def test_reading_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "metrics.csv")
