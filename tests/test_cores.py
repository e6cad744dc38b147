"""CPU quotas: cgroups v1 and v2 as hosts and containers show them, and the code that respects them."""

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
def unset_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset OMP_NUM_THREADS, the user's or ours; restore everything afterwards."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that monkeypatch restores it
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(cores, "_limited", False)


def quota(root: Path, folder: str, quota: str, period: str = "100000") -> None:
    """Write a quota in the format of the cgroup version that the folder belongs to."""
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
def test_a_quota_is_rounded_down_to_at_least_one_core(
    tmp_path: Path, allowed: str, period: str, expected: int
):
    member(tmp_path, "0::/")
    quota(tmp_path, V2, allowed, period)
    assert available_cores(tmp_path) == expected


def test_the_smallest_quota_of_all_parent_groups_counts(tmp_path: Path):
    member(tmp_path, "0::/user.slice/user-1000.slice/run.scope")
    quota(tmp_path, f"{V2}/user.slice/user-1000.slice/run.scope", "max")
    quota(tmp_path, f"{V2}/user.slice/user-1000.slice", "300000")
    quota(tmp_path, f"{V2}/user.slice", "500000")
    quota(tmp_path, f"{V2}/other.slice", "100000")
    assert available_cores(tmp_path) == 3


@pytest.mark.parametrize("place", [V1, f"{V1},cpuacct"])
def test_cgroup_v1_has_its_quota_in_two_files(tmp_path: Path, place: str):
    member(tmp_path, "5:memory:/a", "4:cpu,cpuacct:/docker/abc", "3:cpuset:/b", "1:name=systemd:/c", "0::/d")
    quota(tmp_path, f"{place}/docker/abc", "250000")
    quota(tmp_path, f"{place}/docker", "-1")
    assert available_cores(tmp_path) == 2


def test_a_container_with_the_path_of_its_host_uses_the_root_group(tmp_path: Path):
    member(tmp_path, "4:cpu:/kubepods/pod1/abc", "0::/kubepods/pod1/abc")
    quota(tmp_path, V2, "400000")
    assert available_cores(tmp_path) == 4
    quota(tmp_path, V1, "300000")
    assert available_cores(tmp_path) == 3


@pytest.mark.parametrize("line", ["0::/../../elsewhere", "0::/", "", "no line of the kind", "4:cpu:"])
def test_a_path_outside_the_namespace_or_a_useless_line_falls_back_to_the_root_group(
    tmp_path: Path, line: str
):
    member(tmp_path, line)
    quota(tmp_path, V2, "200000")
    (tmp_path / "sys/elsewhere").mkdir()
    (tmp_path / "sys/elsewhere/cpu.max").write_text("100000 100000\n")
    assert available_cores(tmp_path) == 2


def test_hybrid_cgroups_have_v2_in_its_own_folder(tmp_path: Path):
    member(tmp_path, "1:cpu:/", "0::/job")
    quota(tmp_path, V1, "-1")
    quota(tmp_path, f"{V2}/unified/job", "200000")
    assert available_cores(tmp_path) == 2


def test_without_cgroups_the_affinity_mask_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert available_cores(tmp_path) == 8
    member(tmp_path, "0::/")
    (tmp_path / V2 / "cpu.max").mkdir(parents=True)  # a folder, which cannot be read
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


def test_predict_decodes_in_as_many_threads_as_the_quota_allows(three: int, monkeypatch: pytest.MonkeyPatch):
    from alexnet_exp.runs.predict import command as predict

    asked: list[int] = []
    pool = predict.ThreadPoolExecutor
    monkeypatch.setattr(predict, "ThreadPoolExecutor", lambda count: asked.append(count) or pool(count))
    settings: Any = SimpleNamespace(batch_size=1)
    assert list(predict._predict(None, [], settings, "centre", None)) == []  # type: ignore[arg-type]
    assert asked == [three]


def test_prepare_uses_as_many_processes_as_the_quota_allows(
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
        "exclude": None,
        "fit": "crop",
        "channels": 3,
    }
    paths = {"data_dir": "data", "output_dir": "outputs", "cache_dir": None}
    prepare.prepare({**settings, "data": data, "paths": paths})
    assert asked == [three]
    chunks = dict.fromkeys(prepare_chunks.ASKED)
    assert prepare_chunks._begin(str(tmp_path), {**chunks, "num_workers": None}, {}) == three


def test_jobs_of_a_sweep_share_the_quota(three: int, monkeypatch: pytest.MonkeyPatch):
    from alexnet_exp.sweeps.resources import Resources

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "out/mine"}}})
    trainer = OmegaConf.create({"accelerator": "cpu", "devices": 1})
    assert Resources.of_this_machine(config, "auto", 1, [trainer]).free == three


def test_a_run_records_its_available_cores(three: int):
    from alexnet_exp.tracking.environment import hardware

    assert hardware()["cores"] == three


def test_every_command_limits_the_threads_of_torch(three: int, unset_threads: None, capsys: Any):
    from alexnet_exp.cli import main

    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        assert main(["models", "no_such_network"]) == 1
        assert (os.environ["OMP_NUM_THREADS"], torch.get_num_threads()) == ("3", 3)
    finally:
        torch.set_num_threads(before)


def test_a_thread_count_set_by_the_user_is_kept(
    three: int, unset_threads: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    cores.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "6"
    assert cores.threads_are_typed()
    assert cores.environment()["OMP_NUM_THREADS"] == "6"


def test_without_a_quota_torch_chooses_its_threads(unset_threads: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "_quotas", lambda root: iter([]))
    cores.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ


def test_ranks_on_cpu_share_the_quota(three: int, unset_threads: None):
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


def test_a_limit_set_before_importing_torch_holds():
    code = (
        "import os; from alexnet_exp import cores; os.sched_getaffinity = lambda pid: set(range(8));"
        "cores._quotas = lambda root: [2.0]; cores.limit_threads();"
        "import sys; assert 'torch' not in sys.modules; import torch; print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.stdout == "2\n", found.stderr
