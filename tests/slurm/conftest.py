"""A private SLURM cluster of two nodes on this machine, of Debian's slurm-wlm and munge, for as long as a test runs."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/{track}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
KillWait=20
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8
PartitionName=main Nodes=ALL Default=YES State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster, and the folder that its jobs' folders and logs lie in."""

    runs: Path
    environment: dict[str, str]

    def command(self, *words: str, **variables: str) -> str:
        """Run a program from the repository's root, as a user does; return what it prints."""
        done = subprocess.run(
            words, cwd=REPOSITORY, env=self.environment | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *words: str, name: str, options: tuple[str, ...] = (), **variables: str) -> str:
        """Submit ``slurm/run.sbatch`` and return the job's number."""
        return self.command(
            "sbatch", "--parsable", *self.options(name), *options, "slurm/run.sbatch", *words, **variables
        )

    def options(self, name: str) -> tuple[str, ...]:
        """Return what every job here is submitted with."""
        return f"--job-name={name}", "--cpus-per-task=1", f"--output={self.runs}/%x-%j.out"

    def log(self, name: str, job: str) -> str:
        """Return what a job printed."""
        return (self.runs / f"{name}-{job}.out").read_text()

    def field(self, job: str, field: str) -> str:
        """Return a field of ``scontrol show job``."""
        shown = self.command("scontrol", "--oneliner", "show", "job", job).split()
        return next(word.partition("=")[2] for word in shown if word.startswith(f"{field}="))

    def state_at_end(self, job: str, seconds: float = 300) -> str:
        """Wait until a job is over; return its state and exit code, such as ``COMPLETED 0:0``."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            state = self.field(job, "JobState")
            if state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"):
                return f"{state} {self.field(job, 'ExitCode')}"
            time.sleep(0.5)
        raise TimeoutError(f"job {job} is {self.field(job, 'JobState')} after {seconds} s")

    def wait_for_lines(self, file: Path, count: int, seconds: float = 300) -> None:
        """Wait until a file has so many lines."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if file.exists() and len(file.read_text().splitlines()) >= count:
                return
            time.sleep(0.2)
        raise TimeoutError(f"{file} has fewer than {count} lines after {seconds} s")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def start(folder: Path, log: str, *words: str) -> "subprocess.Popen[bytes]":
    """Start a daemon in the foreground."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    with (folder / f"{log}.out").open("wb") as output:
        return subprocess.Popen(words, env=environment, stdout=output, stderr=subprocess.STDOUT)


def daemons(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start munge, the controller and two nodes, one by one."""
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    settings = [f"--{option}={folder}/munge.{suffix}" for option, suffix in files.items()]
    # Munge wants folders that nobody else may write in: not so below /tmp.
    yield start(folder, "munged", "munged", "--force", "--foreground", *settings)
    until = time.monotonic() + 10
    while not (folder / "munge.socket").exists() and time.monotonic() < until:
        time.sleep(0.05)
    yield start(folder, "slurmctld", "slurmctld", "-D")
    for node in ("n1", "n2"):
        yield start(folder, node, "slurmd", "-D", "-N", node)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A cluster; skips where its programs are not installed, or may not be run."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: Debian's packages slurm-wlm and munge")
    if os.geteuid() != 0:
        pytest.skip("needs root, as whom SLURM's daemons start jobs")
    # Not below pytest's folders: a socket's path has a limit of 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    (folder / "state").mkdir()
    # Later releases than 24.05 may lack linuxproc.
    track = "linuxproc" if list(Path("/usr/lib").glob("*/slurm*/proctrack_linuxproc.so")) else "pgid"
    (folder / "slurm.conf").write_text(CONFIGURATION.format(ports=free_ports(3), folder=folder, track=track))
    # Lightning leaves MASTER_PORT behind where an earlier test made ranks in this process; two jobs would share it.
    foreign = ("SLURM_", "SBATCH_", "MASTER_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "MASTER_ADDR": "127.0.0.1",  # the nodes' names are none of this machine's
        "PYTHONPATH": str(Path(__file__).parent),
        "LIT_ROBUST": f"{sys.executable} -m lit_robust",
        "LIT_ROBUST_RUNS": str(tmp_path_factory.mktemp("slurm-runs")),
        "OMP_NUM_THREADS": "1",
    }
    running = []
    try:
        running.extend(daemons(folder))
        found = Cluster(Path(environment["LIT_ROBUST_RUNS"]), environment)
        until = time.monotonic() + 30
        while found.command("sinfo", "--noheader", "--format=%T %D") != "idle 2":
            assert time.monotonic() < until, (folder / "slurmctld.log").read_text()
            time.sleep(0.2)
        yield found
        found.command("scancel", "--user=root")
        while found.command("squeue", "--noheader"):
            time.sleep(0.5)
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(timeout=30)
        shutil.rmtree(folder)
