from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from alexnet_exp.sweeps import resources
from alexnet_exp.sweeps.job import Job
from alexnet_exp.sweeps.resources import Resources, visible_gpus


def found(devices: Any = "auto", accelerator: str = "auto", **settings: Any) -> Resources:
    config = OmegaConf.create(
        {"trainer": {"accelerator": accelerator, "devices": devices}, "hydra": {"sweep": {"dir": "out/mine"}}}
    )
    return Resources.of_this_machine(config, {"max_parallel": "auto", "threads": 2, **settings})


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def gpus(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)


@pytest.mark.parametrize(("threads", "devices", "slots"), [(2, "auto", 4), (4, 1, 2), (16, 1, 1), (2, 2, 2)])
def test_processors_are_shared_by_threads(cores, monkeypatch, threads: int, devices: Any, slots: int):
    gpus(monkeypatch, "")
    assert found(devices, threads=threads).free == slots


@pytest.mark.parametrize(
    ("devices", "groups"),
    [
        (1, [("4",), ("5",), ("7",)]),
        ("auto", [("4",), ("5",), ("7",)]),
        (2, [("4", "5")]),
        ([0, 1], [("4", "5")]),
    ],
)
def test_gpus_are_shared_in_groups(cores, monkeypatch, devices: Any, groups: list[tuple[str, ...]]):
    gpus(monkeypatch, "4,5,7")
    here = found(devices)
    assert here.groups == groups
    assert here.free == len(groups)


def test_a_number_of_jobs_is_taken_but_never_more_than_groups_of_gpus(cores, monkeypatch):
    gpus(monkeypatch, "0,1")
    assert found(1, max_parallel=8).free == 2
    assert found(1, max_parallel=1).free == 1
    gpus(monkeypatch, "")
    assert found(1, max_parallel=8).free == 8


def test_jobs_on_the_processor_see_no_groups_of_gpus(cores, monkeypatch):
    gpus(monkeypatch, "0,1")
    assert found(accelerator="cpu").groups == []


def test_what_a_job_held_is_free_again(monkeypatch):
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


def test_a_driver_that_hangs_counts_as_none(monkeypatch, caplog: pytest.LogCaptureFixture):
    def hangs(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(resources.shutil, "which", lambda name: name)
    monkeypatch.setattr(resources.subprocess, "run", hangs)
    assert visible_gpus() == []
    assert "nvidia-smi does not answer" in caplog.text


def test_jobs_inside_an_allocation_are_not_its_tasks(cores, monkeypatch):
    gpus(monkeypatch, "")
    monkeypatch.setenv("SLURM_PROCID", "0")
    environment = found(devices=2).take(Job(0, [], Path("0")))
    assert environment is not None
    assert "SLURM_PROCID" not in environment
