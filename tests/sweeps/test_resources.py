from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from alexnet_exp.sweeps import resources
from alexnet_exp.sweeps.job import Job
from alexnet_exp.sweeps.resources import Resources, trainers, visible_gpus


def found(
    *devices: Any, accelerator: str = "auto", max_parallel: int | str = "auto", threads: int = 2
) -> Resources:
    """Return the resources for jobs that use these devices."""
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "out/mine"}}})
    each = [OmegaConf.create({"accelerator": accelerator, "devices": d}) for d in devices or ("auto",)]
    return Resources.of_this_machine(config, max_parallel, threads, each)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.cores, "available_cores", lambda: 8)


def gpus(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)


@pytest.mark.parametrize(("names", "seen"), [("0, 2", ["0", "2"]), ("0,-1,1", ["0"]), ("", []), ("-1", [])])
def test_gpus_after_an_invalid_one_are_invisible_as_to_cuda(
    monkeypatch: pytest.MonkeyPatch, names: str, seen: list[str]
) -> None:
    gpus(monkeypatch, names)
    assert resources.visible_gpus() == seen


@pytest.mark.parametrize(("threads", "devices", "slots"), [(2, "auto", 4), (4, 1, 2), (16, 1, 1), (2, 2, 2)])
def test_cpu_cores_are_divided_by_the_threads_of_a_job(
    cores, monkeypatch, threads: int, devices: Any, slots: int
):
    gpus(monkeypatch, "")
    assert found(devices, threads=threads).free == slots


@pytest.mark.parametrize(
    ("devices", "groups"),
    [
        (1, [("4",), ("5",), ("7",)]),
        ("auto", [("4",), ("5",), ("7",)]),
        (2, [("4", "5")]),
    ],
)
def test_gpus_are_divided_into_groups(cores, monkeypatch, devices: Any, groups: list[tuple[str, ...]]):
    gpus(monkeypatch, "4,5,7")
    here = found(devices)
    assert here.groups == groups
    assert here.free == len(groups)


@pytest.mark.parametrize("devices", [[[0, 2]], [[0], [1]], [1, 4]])
def test_jobs_with_gpu_indices_or_too_many_gpus_run_one_at_a_time_and_see_all_gpus(
    cores, monkeypatch, devices: list[Any]
):
    gpus(monkeypatch, "4,5,7")
    here = found(*devices, max_parallel=2)
    assert here.free == 1
    assert (here.take(Job(0, [], Path("0"))) or {})["CUDA_VISIBLE_DEVICES"] == "4,5,7"


def test_sweeping_over_devices_reserves_the_maximum(cores, monkeypatch):
    gpus(monkeypatch, "0,1,2,3")
    assert found(1, 2).groups == [("0", "1"), ("2", "3")]
    gpus(monkeypatch, "")
    assert found(1, 2, accelerator="cpu").free == 2


def test_jobs_with_equal_trainer_settings_are_composed_once():
    composed: list[list[str]] = []

    def compose(overrides: list[str]) -> Any:
        composed.append(overrides)
        return OmegaConf.create({"trainer": {"devices": int(overrides[0][-1])}})

    jobs = [[f"trainer.devices={n}", f"seed={seed}"] for n in (1, 2) for seed in (0, 1)]
    assert [trainer.devices for trainer in trainers(jobs, compose)] == [1, 2]
    assert len(composed) == 2


def test_max_parallel_is_used_but_capped_at_the_groups_of_gpus(cores, monkeypatch):
    gpus(monkeypatch, "0,1")
    assert found(1, max_parallel=8).free == 2
    assert found(1, max_parallel=1).free == 1
    gpus(monkeypatch, "")
    assert found(1, max_parallel=8).free == 8


def test_cpu_jobs_get_no_gpus(cores, monkeypatch):
    gpus(monkeypatch, "0,1")
    assert found(accelerator="cpu").groups == []


def test_resources_of_a_finished_job_are_released(monkeypatch):
    here = Resources(1, 2, [("3",)], "sweep")
    job = Job(0, [], Path("0"))
    assert (here.take(job) or {})["CUDA_VISIBLE_DEVICES"] == "3"
    assert here.take(Job(1, [], Path("1"))) is None
    here.give_back(job)
    assert job.devices is None
    assert here.take(Job(1, [], Path("1"))) is not None


def test_without_a_driver_there_are_no_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(resources.shutil, "which", lambda name: None)
    assert visible_gpus() == []
    gpus(monkeypatch, "-1")
    assert visible_gpus() == []


def test_a_hanging_gpu_driver_counts_as_no_gpus(monkeypatch, caplog: pytest.LogCaptureFixture):
    def hangs(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(resources.shutil, "which", lambda name: name)
    monkeypatch.setattr(resources.subprocess, "run", hangs)
    assert visible_gpus() == []
    assert "nvidia-smi does not respond" in caplog.text


@pytest.mark.parametrize("name", ["SLURM_PROCID", "RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID"])
def test_jobs_do_not_inherit_the_rank_variables_of_the_sweeps_launcher(cores, monkeypatch, name: str):
    gpus(monkeypatch, "")
    monkeypatch.setenv(name, "0")
    environment = found(2).take(Job(0, [], Path("0")))
    assert environment is not None
    assert name not in environment
