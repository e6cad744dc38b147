"""How `make chaos` draws its kills, and one of its runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.chaos.__main__ import SETTINGS, Case, chase, draw
from tests.chaos.comparing import differences, history
from tests.chaos.killing import Kill, finish, last_step
from tests.training.small_runs import checkpoint


def test_kills_depend_only_on_the_seed_and_include_every_kind() -> None:
    cases = [draw(number, 0, 400, 15.0) for number in range(20)]
    assert cases == [draw(number, 0, 400, 15.0) for number in range(20)]
    assert cases != [draw(number, 1, 400, 15.0) for number in range(20)]
    assert {kill.kind for case in cases for kill in case.kills} == {"clock", "step", "save"}
    assert sum(len(case.kills) == 2 for case in cases) == 7
    assert all(0 <= kill.step <= 320 and 0 <= kill.seconds <= 13.5 for case in cases for kill in case.kills)


@pytest.mark.slow
def test_a_run_killed_during_a_save_ends_bit_identical_and_a_changed_bit_is_detected(tmp_path: Path) -> None:
    settings = [*SETTINGS, "trainer.max_epochs=2"]
    (tmp_path / "reference").mkdir()
    reference = tmp_path / "reference" / "run"
    finish(reference, settings)
    assert last_step(reference) == 80
    case = chase(Case(0, [Kill("save", step=30)]), tmp_path, reference, settings)
    assert case.wrong == [] and len(case.done) == 1
    run_dir = tmp_path / "00" / "run"
    changed = checkpoint(run_dir)
    changed["state_dict"]["model.features.conv1.bias"][0] += 1e-7
    torch.save(changed, run_dir / "checkpoints" / "last.ckpt")
    found = differences(reference, run_dir)
    assert found["weights"] == ["last.ckpt: state_dict"] and found["optimizer"] == []
    assert found["W&B"] == []
    files = list(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2  # before and after the kill
    lr = next(row["lr"] for row in history(run_dir)[0] if "lr" in row)
    other = repr(lr)[:-1] + ("2" if repr(lr)[-1] == "1" else "1")
    for file in files:
        file.write_bytes(file.read_bytes().replace(repr(lr).encode(), other.encode()))
    assert differences(reference, run_dir)["W&B"] != []
