"""CPU quotas: control groups of both versions, as hosts and containers show them, and who goes by them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from alexnet_exp import cores
from alexnet_exp.cores import available_cores

V1, V2 = "sys/fs/cgroup/cpu", "sys/fs/cgroup"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """No OMP_NUM_THREADS, neither the user's nor ours; nothing stays behind."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what is set in the test is undone with it
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(cores, "_limited", False)


def quota(root: Path, folder: str, quota: str, period: str = "100000") -> None:
    """Write a quota, in the files of the version that the folder belongs to."""
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    if folder.startswith((V1, f"{V1},cpuacct")):
        (place / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (place / "cpu.cfs_period_us").write_text(f"{period}\n")
    else:
        (place / "cpu.max").write_text(f"{quota} {period}\n")


def member(root: Path, *lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("allowed", "period", "expected"),
    [
        ("200000", "100000", 2),
        ("150000", "100000", 1),
        ("20000", "100000", 1),
        ("50000", "10000", 5),
        ("6400000", "100000", 8),
        ("max", "100000", 8),
        ("0", "100000", 8),
        ("200000", "0", 8),
        ("many", "100000", 8),
        ("", "", 8),
    ],
)
def test_a_quota_counts_in_whole_cores_and_one_at_least(
    tmp_path: Path, allowed: str, period: str, expected: int
):
    member(tmp_path, "0::/")
    quota(tmp_path, V2, allowed, period)
    assert available_cores(tmp_path) == expected


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path):
    member(tmp_path, "0::/user.slice/user-1000.slice/run.scope")
    quota(tmp_path, f"{V2}/user.slice/user-1000.slice/run.scope", "max")
    quota(tmp_path, f"{V2}/user.slice/user-1000.slice", "300000")
    quota(tmp_path, f"{V2}/user.slice", "500000")
    quota(tmp_path, f"{V2}/other.slice", "100000")
    assert available_cores(tmp_path) == 3


@pytest.mark.parametrize("place", [V1, f"{V1},cpuacct"])
def test_version_1_has_its_quota_in_two_files(tmp_path: Path, place: str):
    member(tmp_path, "5:memory:/a", "4:cpu,cpuacct:/docker/abc", "3:cpuset:/b", "1:name=systemd:/c", "0::/d")
    quota(tmp_path, f"{place}/docker/abc", "250000")
    quota(tmp_path, f"{place}/docker", "-1")
    assert available_cores(tmp_path) == 2


def test_a_container_that_has_the_hosts_path_finds_its_own_group_first_of_all(tmp_path: Path):
    member(tmp_path, "4:cpu:/kubepods/pod1/abc", "0::/kubepods/pod1/abc")
    quota(tmp_path, V2, "400000")
    assert available_cores(tmp_path) == 4
    quota(tmp_path, V1, "300000")
    assert available_cores(tmp_path) == 3


@pytest.mark.parametrize("line", ["0::/../../elsewhere", "0::/", "", "no line of the kind", "4:cpu:"])
def test_a_namespace_of_its_own_and_a_line_that_says_nothing_leave_the_first_group(tmp_path: Path, line: str):
    member(tmp_path, line)
    quota(tmp_path, V2, "200000")
    (tmp_path / "sys/elsewhere").mkdir()
    (tmp_path / "sys/elsewhere/cpu.max").write_text("100000 100000\n")
    assert available_cores(tmp_path) == 2


def test_both_versions_at_once_have_the_second_in_a_folder_of_its_own(tmp_path: Path):
    member(tmp_path, "1:cpu:/", "0::/job")
    quota(tmp_path, V1, "-1")
    quota(tmp_path, f"{V2}/unified/job", "200000")
    assert available_cores(tmp_path) == 2


def test_without_control_groups_the_cores_that_the_process_may_run_on_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert available_cores(tmp_path) == 8
    member(tmp_path, "0::/")
    (tmp_path / V2 / "cpu.max").mkdir(parents=True)  # neither can it be read
    assert available_cores(tmp_path) == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> int:
    """A quota of three of eight cores."""
    monkeypatch.setattr(cores, "_quotas", lambda root: iter([3.5]))
    return 3


def test_workers_of_a_run_and_of_its_ranks_follow_the_quota(three: int):
    from alexnet_exp.data.module import ImageData

    run = SimpleNamespace(num_workers=None, trainer=None)
    assert ImageData._workers(run) == three  # type: ignore[arg-type]
    run.trainer = SimpleNamespace(num_devices=2)
    assert ImageData._workers(run) == 1  # type: ignore[arg-type]


def test_predict_decodes_in_as_many_threads_as_the_quota_has_room_for(
    three: int, monkeypatch: pytest.MonkeyPatch
):
    from alexnet_exp.runs.predict import command as predict

    asked: list[int] = []
    pool = predict.ThreadPoolExecutor
    monkeypatch.setattr(predict, "ThreadPoolExecutor", lambda count: asked.append(count) or pool(count))
    assert list(predict._predict(None, [], 1, 1)) == []  # type: ignore[arg-type]
    assert asked == [three]


def test_prepare_works_in_as_many_processes_as_the_quota_has_room_for(
    three: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("litdata")
    from alexnet_exp.runs.prepare import chunks as prepare_chunks
    from alexnet_exp.runs.prepare import command as prepare

    asked: list[int] = []
    monkeypatch.setattr(prepare, "_cache", lambda config, workers, console: asked.append(workers))
    settings = {"out": None, "size": None, "quality": 90, "chunk_mb": 64, "num_workers": None, "cache": True}
    data = {
        "kind": "folder",
        "root": "x",
        "val_fraction": None,
        "val_seed": 0,
        "split_rule": "by_name",
        "follow_links": False,
        "channels": 3,
    }
    prepare.prepare({**settings, "data": data})
    assert asked == [three]
    chunks = dict.fromkeys(prepare_chunks.ASKED)
    assert prepare_chunks._begin(str(tmp_path), {**chunks, "num_workers": None}, {}) == three


def test_jobs_of_a_sweep_share_the_quota(three: int, monkeypatch: pytest.MonkeyPatch):
    from alexnet_exp.sweeps.resources import Resources

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "out/mine"}}})
    trainer = OmegaConf.create({"accelerator": "cpu", "devices": 1})
    settings = {"max_parallel": "auto", "threads": 1}
    assert Resources.of_this_machine(config, settings, [trainer]).free == three


def test_the_record_of_a_run_has_the_cores_that_it_had(three: int):
    from alexnet_exp.tracking.environment import hardware

    assert hardware()["cores"] == three


def test_every_command_limits_the_threads_of_torch(three: int, untyped: None, capsys: Any):
    from alexnet_exp.cli import main

    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        assert main(["models", "no_such_network"]) == 1
        assert (os.environ["OMP_NUM_THREADS"], torch.get_num_threads()) == ("3", 3)
    finally:
        torch.set_num_threads(before)


def test_threads_that_the_user_has_chosen_stay(three: int, untyped: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    cores.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "6"
    assert cores.threads_are_typed()
    assert cores.environment()["OMP_NUM_THREADS"] == "6"


def test_without_a_quota_torch_chooses_its_threads(untyped: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "_quotas", lambda root: iter([]))
    cores.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ


def test_ranks_on_cpu_share_the_quota(three: int, untyped: None):
    from alexnet_exp.runs.train.fit import _cpu_threads

    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        cores.limit_threads()
        assert "OMP_NUM_THREADS" not in cores.environment()  # each rank finds its own limit
        with _cpu_threads(SimpleNamespace(strategy=strategy, num_devices=3)):  # type: ignore[arg-type]
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_process_that_limits_itself_before_torch_is_imported_has_no_more_threads():
    code = (
        "import os; from alexnet_exp import cores; os.sched_getaffinity = lambda pid: set(range(8));"
        "cores._quotas = lambda root: [2.0]; cores.limit_threads();"
        "import sys; assert 'torch' not in sys.modules; import torch; print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.stdout == "2\n", found.stderr
