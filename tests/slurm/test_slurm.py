"""The scripts of ``slurm/``, submitted as a user submits them, to a real SLURM of two nodes."""

import json
import zipfile

import pytest
import torch
import yaml

from lit_robust.core.results import RunResults

pytestmark = pytest.mark.slurm

RECIPE = ["-c", "configs/toy/standard.yaml", "--trainer.enable_progress_bar=false"]
FIT = [
    *RECIPE,
    "--data.class_path=lit_robust.data.ImageNetDataModule",
    "--data.evaluation={resize: null, crop: null}",
    "--data.training={crop: none, size: 48, flip: true}",
    "--data.batch_size=8",
    "--data.num_workers=1",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.callbacks+=job_callbacks.BatchRecorder",
]
STEPS = 2 * (101 // (8 * 2))  # epochs, images, batch, ranks
WAITING = ["--trainer.callbacks+=job_callbacks.WaitForSignal", "--trainer.callbacks.step=8"]  # in the second epoch


@pytest.fixture(scope="module")
def jobs(cluster, toy):
    """All jobs' numbers by name, submitted at once, so that one computes where another waits."""
    fit = [*FIT, "--data.root", str(toy)]
    chain = [*cluster.options("whole"), "--ntasks-per-node=2", "--", *fit, "--", *RECIPE, "--data.root", str(toy)]
    training, testing = cluster.command("slurm/train-then-test.sh", *chain).split()
    cancelled = cluster.submit("fit", *fit, *WAITING, name="cancelled")
    requeued = cluster.submit("fit", *fit, *WAITING, name="requeued", options=("--nodes=2",))
    broken = [
        "--trainer.callbacks+=job_callbacks.FailOnRank",
        "--trainer.callbacks.step=3",
        "--trainer.callbacks.rank=1",
    ]
    failing = cluster.submit("fit", *fit, *broken, name="failing", options=("--ntasks-per-node=2",))
    lines = cluster.runs / "lines.txt"
    lines.write_text(
        "# three seeds\n--seed_everything 1\n\n--seed_everything 2\n--seed_everything 3 --data.name 'imagenet'\n"
    )
    array = ["slurm/sweep.sh", str(lines), *cluster.options("array"), "--", "fit", *fit, "--trainer.max_epochs", "1"]
    return {
        "training": training,
        "testing": testing,
        "cancelled": cancelled,
        "requeued": requeued,
        "failing": failing,
        "array": cluster.command(*array),
    }


def checkpoint(file):
    return torch.load(file, weights_only=True)


def records(folder, rank):
    """What a rank trained on, start after start."""
    return [json.loads(line) for line in (folder / f"batches-{rank}.jsonl").read_text().splitlines()]


def test_scancel_leaves_whole_files_and_a_checkpoint(cluster, jobs):
    """SIGTERM reaches the loader's processes, too; the training saves all the same."""
    job, folder = jobs["cancelled"], cluster.runs / f"cancelled-{jobs['cancelled']}"
    cluster.wait_for_lines(folder / "batches-0.jsonl", 7)
    cluster.command("scancel", job)
    assert cluster.state_at_end(job).startswith("CANCELLED")
    saved = checkpoint(folder / "checkpoints" / "requeue.ckpt")
    assert saved["global_step"] == records(folder, 0)[-1]["step"] < 2 * (101 // 8)
    for file in (folder / "checkpoints").iterdir():
        assert file.suffix == ".ckpt", f"{file} is half-written"
        assert zipfile.ZipFile(file).testzip() is None


def test_usr1_saves_requeues_and_goes_on_at_the_next_batch(cluster, jobs):
    """One rank on each of two nodes; the batches and the weights of the run that nobody interrupted, bit by bit."""
    job, folder = jobs["requeued"], cluster.runs / f"requeued-{jobs['requeued']}"
    cluster.wait_for_lines(folder / "batches-0.jsonl", 7)
    cluster.command("scancel", "--signal=USR1", "--batch", job)  # what --signal=B:USR1@300 does before the limit
    assert cluster.state_at_end(job) == "COMPLETED 0:0", cluster.log("requeued", job)
    assert (cluster.field(job, "Restarts"), cluster.field(job, "NodeList")) == ("1", "n[1-2]")
    assert cluster.state_at_end(jobs["training"]) == "COMPLETED 0:0"
    whole = cluster.runs / f"whole-{jobs['training']}"
    for rank in (0, 1):
        found = records(folder, rank)
        assert {record["start"] for record in found} == {0, 1}
        assert [(r["step"], r["index"]) for r in found] == [(r["step"], r["index"]) for r in records(whole, rank)]
    last = checkpoint(folder / "checkpoints" / "last.ckpt")
    for name, tensor in checkpoint(whole / "checkpoints" / "last.ckpt")["state_dict"].items():
        assert torch.equal(last["state_dict"][name], tensor), name
    # A finished run leaves no checkpoint to go on from, and both starts logged as one W&B run.
    assert not (folder / "checkpoints" / "requeue.ckpt").exists()
    name = (folder / ".slurm" / "wandb-id").read_text()
    fragments = [entry.name for entry in (folder / "wandb").glob("offline-run-*")]
    assert len(fragments) == 2
    assert all(fragment.endswith(f"-{name}") for fragment in fragments)


def test_two_ranks_train_every_step(cluster, jobs):
    """Half of the epoch's batches each, and none twice."""
    assert cluster.state_at_end(jobs["training"]) == "COMPLETED 0:0", cluster.log("whole", jobs["training"])
    folder = cluster.runs / f"whole-{jobs['training']}"
    both = [records(folder, rank) for rank in (0, 1)]
    assert [[record["step"] for record in rank] for rank in both] == [list(range(1, STEPS + 1))] * 2
    for epoch in (slice(0, STEPS // 2), slice(STEPS // 2, STEPS)):
        seen = [index for rank in both for record in rank[epoch] for index in record["index"]]
        assert len(seen) == len(set(seen)) == 96
    assert checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == STEPS


def test_a_failing_rank_fails_the_job(cluster, jobs):
    """Rank 0 waits for rank 1's gradients, until srun ends it."""
    state, _, code = cluster.state_at_end(jobs["failing"]).partition(" ")
    assert state == "FAILED"
    assert code in ("1:0", "143:0")  # srun gives the highest: that of the rank it ended
    assert "RuntimeError: rank 1 fails on purpose" in cluster.log("failing", jobs["failing"])
    folder = cluster.runs / f"failing-{jobs['failing']}"
    assert len(records(folder, 0)) <= 4


def test_the_chain_tests_what_the_training_wrote_on_two_ranks_as_on_one(cluster, jobs, toy):
    last = str(cluster.runs / f"whole-{jobs['training']}" / "checkpoints" / "last.ckpt")
    cluster.state_at_end(jobs["training"])
    one = cluster.submit("test", *RECIPE, "--data.root", str(toy), "--ckpt_path", last, name="one")
    assert cluster.state_at_end(jobs["testing"]) == "COMPLETED 0:0", cluster.log("whole", jobs["testing"])
    assert cluster.state_at_end(one) == "COMPLETED 0:0", cluster.log("one", one)
    found = [RunResults.load(cluster.runs / name) for name in (f"whole-{jobs['testing']}", f"one-{one}")]
    assert [results.run["ranks"] for results in found] == [2, 1]
    assert [results.run["checkpoint"] for results in found] == [last, last]
    values = [[(result.key, result.value, result.count) for result in results.results] for results in found]
    assert values[0] == values[1]
    assert len(values[0]) > 5
    # A test writes no checkpoint, and finds none of its own.
    assert not (cluster.runs / f"one-{one}" / "checkpoints").exists()


def test_an_array_keeps_a_folder_a_line(cluster, jobs):
    seeds = []
    for task in (1, 2, 3):
        assert cluster.state_at_end(f"{jobs['array']}_{task}") == "COMPLETED 0:0"
        folder = cluster.runs / f"array-{jobs['array']}_{task}"
        assert (folder / "checkpoints" / "last.ckpt").exists()
        seeds.append(yaml.safe_load((folder / "config-fit.yaml").read_text())["seed_everything"])
    assert seeds == [1, 2, 3]
