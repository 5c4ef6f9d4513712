"""Both readers on real shards: each sample once, the planned order, and nothing else, whoever reads."""

import io
import json
from itertools import product

import pytest
from PIL import Image
from url_server import serving

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.samples import EvaluationSamples, TrainingSamples
from lit_robust.data.loading.splits import Reading, Share, open_split, workers_for
from lit_robust.data.loading.transforms import EvaluationCrop, TrainingCrop
from lit_robust.shards import ShardWriter

COUNT = 23  # Two and three ranks, and batches of 4, leave a remainder.
WHOLE = EvaluationCrop(resize=None, crop=None)


def write(folder, shards, count=COUNT):
    """Write images whose red channel is their number, in this many shards."""
    with ShardWriter(folder, "val", shard_size=-(-count // shards), num_classes=count) as writer:
        for number in range(count):
            file = io.BytesIO()
            Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
            writer.write(f"sample{number:03d}", {"png": file.getvalue(), "cls": b"%d" % number})


@pytest.fixture(scope="module", params=[1, 2, 5], ids=lambda shards: f"{shards} shards")
def roots(request, tmp_path_factory):
    """A folder with one set, and the same behind a URL."""
    root = tmp_path_factory.mktemp("root")
    write(root / "set", request.param)
    with serving(root) as (url, _):
        yield {"indexed": str(root), "stream": url}


def evaluation(root, rank, world, workers, batch_size=4):
    split = open_split(root, "set", "val", Reading())
    source, plan = split.evaluation(Share(batch_size, rank, world))
    workers = workers if plan.lane_count is None else workers_for(plan.lane_count, workers)
    return PlannedLoader(EvaluationSamples(source, WHOLE), plan, workers, False, keeps_workers=False)


def training(root, rank, world, workers, shuffle="global", batch_size=2, block=4, seed=7):
    reading = Reading(shuffle=shuffle, block=block)
    split = open_split(root, "set", "val", reading)
    source, plan = split.training(Share(batch_size, rank, world), reading, seed)
    samples = TrainingSamples(source, TrainingCrop(crop="none", size=4, flip=True), seed)
    workers = workers if plan.lane_count is None else workers_for(plan.lane_count, workers)
    return PlannedLoader(samples, plan, workers, False, keeps_workers=True)


def check_contents(batch):
    assert batch.image[:, 0, 0, 0].tolist() == batch.index.tolist()
    assert batch.label.tolist() == batch.index.tolist()


@pytest.mark.parametrize(("reader", "world", "workers"), list(product(["indexed", "stream"], (1, 2, 3), (0, 1, 3))))
def test_evaluation_counts_each_sample_once(roots, reader, world, workers):
    counted, lengths = [], set()
    for rank in range(world):
        batches = list(evaluation(roots[reader], rank, world, workers))
        lengths.add(len(batches))
        for batch in batches:
            check_contents(batch)
            counted += batch.index[batch.valid].tolist()
    assert sorted(counted) == list(range(COUNT))
    assert len(lengths) == 1


@pytest.mark.parametrize(
    ("reader", "shuffle", "world"),
    list(product(["indexed"], ["global", "block"], (1, 2, 3))) + [("stream", "block", world) for world in (1, 2, 3)],
)
def test_training_order_follows_from_seed_epoch_and_world_alone(roots, reader, shuffle, world):
    seen = []
    for rank in range(world):
        runs = []
        for workers in (0, 1, 3):
            loader = training(roots[reader], rank, world, workers, shuffle)
            loader.sampler.set_epoch(2)
            batches = list(loader)
            for batch in batches:
                check_contents(batch)
            # The augmentation is part of what must not change.
            runs.append([(batch.index.tolist(), batch.image.numpy().tobytes()) for batch in batches])
        assert runs[0] == runs[1] == runs[2]
        assert len(runs[0]) == COUNT // (2 * world)
        seen += [number for numbers, _ in runs[0] for number in numbers]
    assert len(set(seen)) == len(seen)


def test_both_readers_shuffle_in_the_same_blocks(roots):
    orders = []
    for reader in ("indexed", "stream"):
        loader = training(roots[reader], 1, 2, 0, "block")
        orders.append([batch.index.tolist() for batch in loader])
    assert orders[0] == orders[1]


@pytest.mark.parametrize(("reader", "shuffle"), [("indexed", "global"), ("indexed", "block"), ("stream", "block")])
@pytest.mark.parametrize("workers", [(0, 3), (3, 1), (3, 0)], ids=str)
def test_resumes_at_the_next_batch_with_another_number_of_workers(roots, reader, shuffle, workers):
    whole = training(roots[reader], 0, 1, workers[0], shuffle)
    whole.sampler.set_epoch(1)
    iterator = iter(whole)
    for _ in range(4):
        next(iterator)
    state = whole.state_dict()
    rest = [(batch.index.tolist(), batch.image.numpy().tobytes()) for batch in iterator]
    resumed = training(roots[reader], 0, 1, workers[1], shuffle)
    resumed.load_state_dict(state)
    assert [(batch.index.tolist(), batch.image.numpy().tobytes()) for batch in resumed] == rest
    assert len(rest) == len(whole) - 4


@pytest.mark.parametrize(
    ("reader", "start_method"), list(product(["indexed", "stream"], ["fork", "forkserver", "spawn"]))
)
def test_every_way_to_start_a_process_reads_the_same(tmp_path, reader, start_method):
    write(tmp_path / "set", 2)
    with serving(tmp_path) as (url, _):
        split = open_split({"indexed": str(tmp_path), "stream": url}[reader], "set", "val", Reading())
        source, plan = split.evaluation(Share(4, 1, 2))
        samples = EvaluationSamples(source, WHOLE)
        orders = []
        for workers in (0, 1):
            method = start_method if workers else None
            loader = PlannedLoader(samples, plan, workers, False, keeps_workers=False, start_method=method)
            orders.append([(batch.index.tolist(), batch.valid.tolist(), batch.label.tolist()) for batch in loader])
    assert orders[0] == orders[1]


def test_a_lane_fetches_only_what_it_needs(tmp_path):
    write(tmp_path / "set", 10, count=200)
    with serving(tmp_path) as (url, served):
        loader = training(url, 0, 4, 0, "block", batch_size=10, block=10)
        served.clear()
        assert len(list(loader)) == 5
        fetched = [path for path in served if path.endswith(".tar")]
    # A quarter of ten shards, in five stretches of ten samples: each lies in one shard of twenty, or across two.
    assert 3 <= len(fetched) <= 10


def test_only_allowed_pipes_are_run(tmp_path):
    write(tmp_path / "set", 2)
    root = f"pipe:cat {tmp_path}/{{}}"
    with pytest.raises(UserError, match="is a shell command: set the data's reading.allow_pipes to true"):
        open_split(root, "set", "val", Reading())
    split = open_split(root, "set", "val", Reading(allow_pipes=True))
    source, plan = split.evaluation(Share(4, 0, 1))
    batches = list(PlannedLoader(EvaluationSamples(source, WHOLE), plan, 0, False, keeps_workers=False))
    assert sum(int(batch.valid.sum()) for batch in batches) == COUNT
    with pytest.raises(UserError, match="names no file"):
        open_split("pipe:cat x", "set", "val", Reading(allow_pipes=True))


def program(folder, name, text):
    """Put a script in the place of a program that is not here."""
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return str(folder)


def test_s3_is_read_by_aws_and_without_a_shell(tmp_path, monkeypatch):
    write(tmp_path / "bucket" / "a;b" / "set", 2)
    (tmp_path / "bucket" / "a;b" / "set").rename(tmp_path / "bucket" / "a;b" / "my set")
    # s3://x/... lies in the folder; whatever is not the fifth word of five is refused.
    script = f'[ $# = 5 ] && [ "$1 $2 $3 $5" = "s3 cp --only-show-errors -" ] && cat "{tmp_path}/bucket/${{4#s3://x/}}"'
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "aws", script), prepend=":")
    split = open_split("s3://x/a;b", "my set", "val", Reading())
    source, plan = split.evaluation(Share(4, 0, 1))
    batches = list(PlannedLoader(EvaluationSamples(source, WHOLE), plan, 0, False, keeps_workers=False))
    assert sum(int(batch.valid.sum()) for batch in batches) == COUNT


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="is fetched by the program aws, which is not here: install it"):
        open_split("s3://bucket", "set", "val", Reading())


def test_an_address_where_nobody_answers_is_told_from_a_missing_file(tmp_path):
    lacks = pytest.raises(UserError, match="has no _info.json or sizes.json that lists the split 'val'")
    with serving(tmp_path) as (url, _), lacks:
        open_split(url, "set", "val", Reading())
    with pytest.raises(UserError, match="cannot be reached: check the address and the connection"):
        open_split(url, "set", "val", Reading())


@pytest.mark.parametrize("path", ["a b; touch owned/set", "$(touch owned)", "a'b"])
def test_a_path_cannot_add_to_the_pipes_command(tmp_path, path):
    with pytest.raises(UserError, match="has letters that a shell may take for more"):
        open_split(f"pipe:cd {tmp_path}; cat {{}}", path, "val", Reading(allow_pipes=True))
    assert not (tmp_path / "owned").exists()


def test_lanes_of_a_process_share_a_shard(tmp_path):
    write(tmp_path / "set", 1, count=200)
    with serving(tmp_path) as (url, served):
        assert len(list(training(url, 0, 1, 0, "block", batch_size=10, block=10))) == 20
        assert sum(path.endswith(".tar") for path in served) == 1


# In a member, at a header, before and inside the end-of-archive marker: 11 samples take 2,048 bytes each.
@pytest.mark.parametrize("cut", [3000, 4096, 11 * 2048, 11 * 2048 + 512])
def test_a_shard_that_is_cut_on_its_way_is_an_error(tmp_path, cut):
    write(tmp_path / "set", 2)
    shard = sorted((tmp_path / "set").glob("*.tar"))[1]
    shard.write_bytes(shard.read_bytes()[:cut])
    with serving(tmp_path) as (url, served):
        with pytest.raises(DataError, match=r"http://.*0001\.tar"):
            list(evaluation(url, 0, 1, 0))
        assert sum(path.endswith("0001.tar") for path in served) == 3


def test_a_cut_shard_is_left_out_from_where_it_is_cut_when_told(tmp_path):
    write(tmp_path / "set", 2)
    shard = sorted((tmp_path / "set").glob("*.tar"))[1]
    shard.write_bytes(shard.read_bytes()[: 5 * 2048])
    for root in (str(tmp_path), "stream"):
        with serving(tmp_path) as (url, _):
            reading = Reading(on_error="skip")
            split = open_split(url if root == "stream" else root, "set", "val", reading)
            source, plan = split.evaluation(Share(4, 0, 1))
            samples = EvaluationSamples(source, WHOLE, "skip")
            batches = list(PlannedLoader(samples, plan, 0, False, keeps_workers=False))
        counted = [number for batch in batches for number in batch.image[batch.valid][:, 0, 0, 0].tolist()]
        # The last whole sample before the cut may lack members, and is given up, too.
        assert sorted(counted) == list(range(12 + 4))
        lost = len(split) - len(counted)
        if root == "stream":
            assert sum(int(batch.broken.sum()) for batch in batches) == lost == 7
        else:
            assert lost == 0
            assert split.protocol["skipped"] == "7 samples (defects of the shards: 2)"


def test_a_shard_with_fewer_samples_than_listed_is_an_error(tmp_path):
    write(tmp_path / "set", 2)
    write(tmp_path / "other" / "set", 2, count=20)
    shard = sorted((tmp_path / "other" / "set").glob("*.tar"))[1]
    shard.rename(tmp_path / "set" / shard.name)
    with serving(tmp_path) as (url, _), pytest.raises(DataError, match="has not the sha256 that its info file says"):
        list(evaluation(url, 0, 1, 0))
    # An info file of another tool has counts alone.
    info = tmp_path / "set" / "_info.json"
    content = json.loads(info.read_text())
    for split in content["splits"].values():
        del split["shard_sha256"]
    info.write_text(json.dumps(content))
    with serving(tmp_path) as (url, _), pytest.raises(DataError, match="holds 10 samples, but its info file says 11"):
        list(evaluation(url, 0, 1, 0))


def test_a_missing_shard_is_an_error(tmp_path):
    write(tmp_path / "set", 2)
    sorted((tmp_path / "set").glob("*.tar"))[1].unlink()
    with serving(tmp_path) as (url, _), pytest.raises(DataError, match="check the address and the connection"):
        list(evaluation(url, 0, 1, 0))
