"""A throwaway one-node SLURM for tests: no systemd, no cgroups, no accounting."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scontrol")
_SETTINGS = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
KillWait=30
SchedulerParameters=sched_interval=2,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 CoresPerSocket=2 ThreadsPerCore=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=01:00:00 State=UP
"""


def why_not() -> str | None:
    """Return why no SLURM can be started here, or None."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"needs SLURM and munge (slurm-wlm, munge): {', '.join(missing)} not found"
    return None if os.geteuid() == 0 else "SLURM's daemons need root"


@contextlib.contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons; yield the environment in which SLURM's commands find them."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    # This SLURM has no plugin for 'no cgroups'; the one for v1 loads and is never used.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    settings = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    settings.write_text(_SETTINGS.format(host=host, folder=folder, ports=_free_ports()))
    environment = {**os.environ, "SLURM_CONF": str(settings), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    munge = [
        f"--{name}={folder / file}"
        for name, file in {
            "key-file": "key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log",
            "seed-file": "seed",
        }.items()
    ]  # fmt: skip
    try:
        for command in (["munged", *munge, "--force"], ["slurmctld", "-c"], ["slurmd", "-c"]):
            subprocess.run(command, env=environment, check=True, timeout=30, capture_output=True)
        _wait_until_idle(environment)
        yield environment
    finally:
        _stop_daemons(folder)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _wait_until_idle(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 30
    while True:
        shown = subprocess.run(
            ["sinfo", "-h", "-o", "%T"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        ).stdout
        if "idle" in shown:
            return
        assert time.monotonic() < deadline, f"the node is {shown.strip() or 'not there'}"
        time.sleep(0.2)


def _stop_daemons(folder: Path) -> None:
    for name in ("slurmd", "slurmctld", "munged"):
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            pid = int((folder / f"{name}.pid").read_text())
            os.kill(pid, 15)
            deadline = time.monotonic() + 10
            while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
