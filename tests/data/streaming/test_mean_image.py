"""The cached mean image, needed by several runs at the same time."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch

from alexnet_exp.data.streaming.dataset import kept_mean


def test_only_one_of_several_concurrent_runs_computes_the_mean_image(tmp_path: Path):
    taken: list[int] = []

    def take() -> torch.Tensor:
        taken.append(1)
        time.sleep(0.1)  # long enough for the others to arrive
        return torch.ones(1, 2, 2)

    found: list[torch.Tensor] = []
    starts = [
        threading.Thread(
            target=lambda: found.append(kept_mean([tmp_path / "kept"], ["key"], (1, 2, 2), take))
        )
        for _ in range(4)
    ]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(taken) == 1
    assert all(torch.equal(image, torch.ones(1, 2, 2)) for image in found)
    assert len(found) == 4


def test_with_an_unwritable_folder_the_mean_image_is_not_cached(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("no folder")
    image = kept_mean([tmp_path / "file" / "kept"], ["key"], (1, 2, 2), lambda: torch.ones(1, 2, 2))
    assert torch.equal(image, torch.ones(1, 2, 2))
    assert "the next run computes it again" in caplog.text
