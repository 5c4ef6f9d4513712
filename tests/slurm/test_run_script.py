"""What ``slurm/run.sbatch`` does without a cluster: a stand-in for srun and scontrol writes down how it is called."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SRUN = """#!/bin/bash
trap 'echo USR1 >>"$CALLS"; exit "${ENDS:-85}"' USR1
[[ -z ${SAVES:-} ]] || { mkdir -p "$SAVES"; touch -d '+1 second' "$SAVES/requeue.ckpt"; }
[[ -z ${HANGS:-} ]] || trap '' USR1
printf '%s\\n' "$*" >>"$CALLS"
[[ -z ${HANGS:-} ]] || until grep -q '^scontrol' "$CALLS"; do sleep 0.05; done
[[ -z ${WAITS:-} ]] || while :; do sleep 0.05; done
exit "${CODE:-0}"
"""
SCONTROL = """#!/bin/bash
printf 'scontrol %s\\n' "$*" >>"$CALLS"
"""


class Site:
    """A folder with stand-ins, and the job's environment."""

    def __init__(self, folder):
        self.folder = folder
        self.run = folder / "runs" / "job-7"
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "LIT_"))}
        self.environment = inherited | {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "CALLS": str(folder / "calls"),
            "LIT_ROBUST_RUNS": str(folder / "runs"),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "job",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS_PER_NODE": "4",
        }

    def start(self, *words, **variables):
        return subprocess.Popen(
            ["bash", "slurm/run.sbatch", *words],
            cwd=REPOSITORY,
            env=self.environment | variables,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, *words, **variables):
        job = self.start(*words, **variables)
        said = job.communicate(timeout=30)[1]
        return job.returncode, said

    def calls(self):
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_devices_nodes_and_folder_follow_from_the_job(site):
    assert site.end("fit", "-c", "recipe.yaml") == (0, "")
    (call,) = site.calls()
    assert call.startswith("--kill-on-bad-exit=1 lit-robust fit -c recipe.yaml ")
    assert f"--trainer.default_root_dir {site.run} --trainer.devices 4 --trainer.num_nodes 2" in call
    assert "--ckpt_path" not in call
    assert re.fullmatch("[0-9a-f]{8}", (site.run / ".slurm" / "wandb-id").read_text())


def test_tools_run_once_and_have_no_folder(site):
    assert site.end("data", "verify", "a b") == (0, "")
    assert site.calls() == ["--nodes=1 --ntasks=1 --ntasks-per-node=1 lit-robust data verify a b"]
    assert not (site.folder / "runs").exists()


@pytest.mark.parametrize("code", [1, 2, 137])
def test_the_exit_code_is_the_commands(site, code):
    assert site.end("fit", CODE=str(code))[0] == code
    assert len(site.calls()) == 1


def test_a_restart_goes_on_from_the_newest_checkpoint_and_a_test_does_not(site):
    (site.run / "checkpoints").mkdir(parents=True)
    for age, name in enumerate(("best.ckpt", "last.ckpt", "requeue.ckpt", "last-v1.ckpt")):
        (site.run / "checkpoints" / name).touch()
        os.utime(site.run / "checkpoints" / name, (1000 - age, 1000 - age))
    assert site.end("fit", "--ckpt_path", "other.ckpt", SLURM_RESTART_COUNT="1")[0] == 0
    assert site.calls()[-1].endswith(f"--ckpt_path {site.run}/checkpoints/last.ckpt")
    os.utime(site.run / "checkpoints" / "requeue.ckpt", (2000, 2000))
    assert site.end("fit", SLURM_RESTART_COUNT="2")[0] == 0
    assert site.calls()[-1].endswith(f"--ckpt_path {site.run}/checkpoints/requeue.ckpt")
    assert site.end("test", SLURM_RESTART_COUNT="2")[0] == 0
    assert "--ckpt_path" not in site.calls()[-1]
    for name in ("last.ckpt", "requeue.ckpt", "last-v1.ckpt"):
        (site.run / "checkpoints" / name).unlink()
    assert site.end("fit", SLURM_RESTART_COUNT="3")[0] == 0
    assert site.calls()[-1].endswith(f"--ckpt_path {site.run}/checkpoints/best.ckpt")


def test_one_wandb_run_for_all_starts(site):
    site.end("fit")
    name = (site.run / ".slurm" / "wandb-id").read_text()
    site.end("fit", SLURM_RESTART_COUNT="1")
    assert (site.run / ".slurm" / "wandb-id").read_text() == name


@pytest.mark.parametrize(
    ("words", "variables", "sentence"),
    [
        ((), {}, "no command"),
        (("fit",), {"SLURM_GPUS_PER_TASK": "1"}, "use --gpus-per-node"),
        (("fit", "--trainer.default_root_dir", "x"), {}, "leave out --trainer.default_root_dir"),
        (("fit",), {"LIT_ROBUST_SITE": "/nowhere.sh"}, "LIT_ROBUST_SITE is /nowhere.sh"),
    ],
)
def test_mistakes_end_in_a_sentence(site, words, variables, sentence):
    code, said = site.end(*words, **variables)
    assert (code, said.count("\n")) == (2, 1)
    assert sentence in said
    assert not (site.folder / "calls").exists()


def test_another_runs_folder_is_not_taken(site):
    site.run.mkdir(parents=True)
    code, said = site.end("fit")
    assert code == 2
    assert "is another run's" in said


def test_a_sweep_without_its_file():
    done = subprocess.run(
        ["slurm/sweep.sh", "nowhere.txt", "--", "fit"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "there is no file nowhere.txt: name one with" in done.stderr


def test_a_line_of_a_sweep_keeps_its_quotes(site):
    (site.folder / "lines").write_text("--a 1\n--data.training '{crop: none, size: 48}' --b \"x  y\"\n")
    variables = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2", "LIT_ROBUST_LINES": str(site.folder / "lines")}
    assert site.end("fit", **variables) == (0, "")
    assert "lit-robust fit --data.training {crop: none, size: 48} --b x  y --trainer" in site.calls()[0]
    assert f"--trainer.default_root_dir {site.folder}/runs/job-5_2 " in site.calls()[0]


def signalled(site, **variables):
    """Send SIGUSR1 to a fit whose srun is running; return the exit code, and what it said."""
    job = site.start("fit", **variables)
    while not (site.folder / "calls").exists():
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=60)[1]
    return job.returncode, said


def test_the_warning_reaches_the_training_which_is_queued_again(site):
    code, said = signalled(site, WAITS="yes", SAVES=str(site.run / "checkpoints"))
    assert code == 0
    assert site.calls()[1:] == ["USR1", "scontrol requeue 7"]
    assert f"go on from {site.run}/checkpoints/requeue.ckpt" in said


def test_a_training_that_hangs_is_queued_again_without_saving(site):
    """The stand-in for scontrol kills nobody: the stand-in for srun ends when it has been called."""
    _, said = signalled(site, HANGS="yes", LIT_ROBUST_GRACE="1", CODE="1")
    assert "nothing was saved within 1 s" in said
    assert "scontrol requeue 7" in site.calls()


def test_three_starts_without_a_checkpoint_are_enough(site):
    """A limit shorter than the way to the first checkpoint would be met for ever."""
    for start in ("0", "1"):
        assert signalled(site, WAITS="yes", ENDS="1", SLURM_RESTART_COUNT=start)[0] == 0
        (site.folder / "calls").rename(site.folder / f"calls of {start}")
        assert "scontrol requeue 7" in (site.folder / f"calls of {start}").read_text()
    code, said = signalled(site, WAITS="yes", ENDS="1", SLURM_RESTART_COUNT="2")
    assert code == 2
    assert "give more --time" in said
    assert "scontrol requeue 7" not in site.calls()


def test_a_memory_that_is_built_in_many_starts_makes_progress_without_a_checkpoint(site):
    for start in range(4):
        assert site.end("fit", CODE="85", SLURM_RESTART_COUNT=str(start))[0] == 0
    assert site.calls().count("scontrol requeue 7") == 4
