"""A SLURM cluster of one node, for a test: controller, node daemon and munge, started and ended here."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CONFIG = """\
ClusterName=langedit-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "sinfo")


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[None]:
    """A running cluster, named by SLURM_CONF; skips with the reason where it cannot be started."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install slurmctld slurmd slurm-client munge")
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster is started by root only")
    folder.mkdir()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname().split(".")[0], folder=folder))
    old = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
    os.environ.update(SLURM_CONF=str(config), PATH=path)
    munge = None
    try:
        subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "/run/munge"], check=True)
        if subprocess.run(["munge", "-n"], capture_output=True).returncode:
            munge = subprocess.Popen(
                ["runuser", "-u", "munge", "--", "munged", "--foreground"], stderr=subprocess.DEVNULL
            )
            _until(lambda: subprocess.run(["munge", "-n"], capture_output=True).returncode == 0)
        subprocess.run(["slurmctld"], check=True)
        subprocess.run(["slurmd"], check=True)
        _until(lambda: "idle" in subprocess.run(["sinfo"], capture_output=True, text=True).stdout)
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], capture_output=True)
        _until(lambda: not subprocess.run(["squeue", "--noheader"], capture_output=True, text=True).stdout.strip())
        subprocess.run(["scontrol", "shutdown"], capture_output=True)
        if munge is not None:
            munge.terminate()
            munge.wait()
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _until(ready, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError("the SLURM cluster of the test did not start; its logs are in its folder")
        time.sleep(0.1)
