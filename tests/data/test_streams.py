"""Streams that do not go well: refused, secret, oddly named, unreachable, and with samples that are lost."""

import contextlib
import io
import json
import logging
import os
import pickle
import threading
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from url_server import serving

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.order import BlockShuffle, Lanes, Share
from lit_robust.data.loading.samples import EvaluationSamples, TrainingSamples
from lit_robust.data.loading.splits import Reading, open_split
from lit_robust.data.loading.streams import RemoteShards, StreamSource
from lit_robust.data.loading.transforms import EvaluationCrop, TrainingCrop
from lit_robust.shards import ShardIndex, ShardWriter, fetch
from lit_robust.shards import remote as remote_module
from lit_robust.shards.labels import CLS
from lit_robust.shards.remote import Remote

SKIP = Reading(on_error="skip", block=4)
SECRETS = ("topsecret", "hunter2", "bob")


def png(number):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(folder, count=12, shard_size=6, label=lambda number: b"%d" % number):
    """Write images whose red channel is their number; without a class where ``label`` gives None."""
    with ShardWriter(folder, "val", shard_size=shard_size, num_classes=count) as writer:
        for number in range(count):
            said = label(number)
            writer.write(f"s{number:03d}", {"png": png(number), **({} if said is None else {"cls": said})})


def evaluated(split, on_error="error"):
    source, plan = split.evaluation(Share(4, 0, 1))
    samples = EvaluationSamples(source, EvaluationCrop(None, None), on_error)
    return list(PlannedLoader(samples, plan, 0, False, keeps_workers=False))


def trained(split, reading, batch_size=2):
    source, plan = split.training(Share(batch_size, 0, 1), reading, seed=7)
    samples = TrainingSamples(source, TrainingCrop(crop="none", size=4, flip=False), 7, reading.on_error)
    return list(PlannedLoader(samples, plan, 0, False, keeps_workers=False))


def counted(batches):
    return sorted(number for batch in batches for number in batch.image[batch.valid][:, 0, 0, 0].tolist())


def test_a_root_with_a_query(tmp_path):
    write(tmp_path / "my data" / "set")
    with serving(tmp_path) as (url, served):
        assert counted(evaluated(open_split(f"{url}/my data/?token=topsecret", "set", "val", Reading()))) == list(
            range(12)
        )
        assert served[0] == "/my%20data/set/_info.json?token=topsecret"
        assert all(path.endswith("?token=topsecret") for path in served)


def test_a_root_with_a_fragment_is_refused():
    with pytest.raises(UserError, match="has a '#', where a URL's path ends: write %23 for it"):
        open_split("http://localhost/a#b", "set", "val", Reading())


@pytest.mark.parametrize("folder", ["a#b", "50%", "50%25", "what?", "a b"])
@pytest.mark.parametrize("form", ["file:{}", "file://{}", "file://localhost{}"])
def test_files_in_folders_of_any_name(tmp_path, folder, form):
    write(tmp_path / folder / "set", count=4)
    assert len(evaluated(open_split(form.format(tmp_path / folder), "set", "val", Reading()))) == 1


def test_coded_letters_of_a_file_root(tmp_path):
    write(tmp_path / "a #b" / "set", count=4)
    assert len(evaluated(open_split(f"file://{tmp_path}/a%20%23b", "set", "val", Reading()))) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_is_told_from_a_missing_file(tmp_path, status):
    write(tmp_path / "set")
    message = rf"Access to http://.*_info\.json was refused \(.*{status}.*check the account, token or rights"
    with serving(tmp_path, lambda path: status) as (url, _), pytest.raises(UserError, match=message):
        open_split(url, "set", "val", Reading())
    # Buckets that may not be listed answer so for what is not there: a later name may be.
    (tmp_path / "set" / "_info.json").rename(tmp_path / "set" / "info.json")
    with serving(tmp_path, lambda path: status if "_info.json" in path else None) as (url, _):
        assert len(open_split(url, "set", "val", Reading())) == 12
    with serving(tmp_path, lambda path: status if path.endswith(".tar") else None) as (url, served):
        split = open_split(url, "set", "val", Reading())
        served.clear()
        with pytest.raises(UserError, match=r"Access to http://.*\.tar was refused"):
            evaluated(split)
        # Each of the two shards was asked for once: another attempt would be refused, too.
        assert len(set(served)) == len(served)


def secret(url):
    return url.replace("http://", "http://bob:hunter2@") + "?token=topsecret"


def test_secrets_are_in_no_message(tmp_path, caplog):
    write(tmp_path / "set")
    shard = sorted((tmp_path / "set").glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:3000])
    said = []
    with caplog.at_level(logging.DEBUG), serving(tmp_path) as (url, served):
        split = open_split(secret(url), "set", "val", Reading())
        said += [split.where, str(split.protocol), repr(split.shards.remote)]
        assert url in split.where
        with pytest.raises(DataError, match="is defective") as error:
            evaluated(split)
        said.append(str(error.value))
        assert url.removeprefix("http://") in said[-1]
        for root, name in ((secret(url), "nowhere"), (secret("http://127.0.0.1:1"), "set")):
            with pytest.raises(UserError) as error:
                open_split(root, name, "val", Reading())
            said.append(str(error.value))
        assert all("token=topsecret" in path for path in served)
    with pytest.raises(UserError, match=r"'pipe:curl \.\.\.' is a shell command") as error:
        open_split("pipe:curl -H 'X: topsecret' -u bob:hunter2 http://h/{}", "set", "val", Reading())
    said.append(str(error.value))
    assert not [(word, text) for word in SECRETS for text in [*said, caplog.text] if word in text]


def test_secrets_are_no_arguments_of_a_program(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "curl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments; cat >> {tmp_path}/given; exit 7\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    for root in ("https://bob:hunter2@h/x?token=topsecret", "hf://datasets/me/images@main/x"):
        with pytest.raises(UserError, match="cannot be reached: check the address and the connection"):
            open_split(root, "set", "val", Reading())
    assert not [word for word in SECRETS if word in (tmp_path / "arguments").read_text()]
    given = (tmp_path / "given").read_text()
    assert 'url = "https://bob:hunter2@h/x/set/_info.json?token=topsecret"' in given
    assert 'header = "Authorization: Bearer hunter2"' in given
    assert 'url = "https://huggingface.co/datasets/me/images/resolve/main/x/set/_info.json"' in given


def test_a_hub_without_a_repository():
    with pytest.raises(UserError, match="names no repository: write hf://datasets/<owner>/<name>/<folder>"):
        open_split("hf://x", "", "val", Reading())


def test_what_a_program_says_is_handed_on(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "aws"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    for said, expected in (
        ("fatal error: An error occurred (403) when calling the HeadObject operation", "Access to s3://b/set/_info"),
        ("Unable to locate credentials", r"has no _info.json .*_info.json: Unable to locate credentials\): upload"),
        ("fatal error: An error occurred (404) when calling the HeadObject operation", "of each shard: upload one"),
    ):
        program.write_text(f"#!/bin/sh\necho '{said}' >&2; exit 1\n")
        program.chmod(0o755)
        with pytest.raises(UserError, match=expected):
            open_split("s3://b", "set", "val", Reading())


def test_an_info_file_that_is_no_text(tmp_path):
    write(tmp_path / "set")
    (tmp_path / "set" / "_info.json").write_bytes(b"\x1f\x8b\xff")
    with serving(tmp_path) as (url, _), pytest.raises(DataError, match=r"_info\.json is not UTF-8 text .*upload it"):
        open_split(url, "set", "val", Reading())


def trickle(handler):
    """Answer three bytes at a time, until nobody listens any more."""
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        while not handler.server.ended.wait(0.05):
            handler.wfile.write(b"abc")


def silence(handler):
    handler.server.ended.wait(60)


@pytest.mark.parametrize("answer", [silence, trickle])
def test_a_server_that_is_silent_or_slow_is_not_waited_for(tmp_path, monkeypatch, answer):
    write(tmp_path / "set")
    with serving(tmp_path, lambda path: answer if path.endswith(".tar") else None) as (url, _):
        split = open_split(url, "set", "val", Reading())
        monkeypatch.setattr(fetch, "WINDOW", 0.2)
        with pytest.raises(DataError, match=r"bytes came in 0.2 s, .*\[after 3 attempts"):
            split.shards.remote.shard(split.shards.files[0], 6, None, CLS, "error")
    with serving(tmp_path, lambda path: answer) as (url, _):
        message = r"cannot be reached.* bytes came in 0.2 s, fewer than reading.min_speed asks for, 10000 a second"
        with pytest.raises(UserError, match=message):
            open_split(url, "set", "val", Reading())


def test_a_shard_that_takes_too_long_in_all(tmp_path):
    write(tmp_path / "set")
    with serving(tmp_path, lambda path: trickle if path.endswith(".tar") else None) as (url, served):
        split = open_split(url, "set", "val", Reading(min_speed=0, max_seconds=1))
        served.clear()
        with pytest.raises(DataError, match=r"it was not there after 1 s, reading.max_seconds"):
            split.shards.remote.shard(split.shards.files[0], 6, None, CLS, "error")
        assert len(served) == 1


def test_what_a_silent_shell_started_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "WINDOW", 0.2)
    remote = Remote(f"pipe:sleep 60 & echo $! > {tmp_path}/started; wait; true {{}}", "set", allow_pipes=True)
    with pytest.raises(fetch.FetchError, match="0 bytes came in 0.2 s"):
        remote.text("x")
    # What was killed stays for a moment, until somebody takes its status.
    started = Path("/proc") / (tmp_path / "started").read_text().strip() / "stat"
    for _ in range(1000):
        if not started.exists() or started.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        threading.Event().wait(0.01)
    raise AssertionError("what the shell started is still there")


@pytest.mark.parametrize("form", ["{}", "file:{}"])
def test_a_full_disk_is_not_blamed_on_the_connection(tmp_path, monkeypatch, form):
    write(tmp_path / "set")
    with serving(tmp_path) as (url, _):
        split = open_split(url if form == "{}" else f"file:{tmp_path}", "set", "val", Reading())
        monkeypatch.setattr(remote_module, "unnamed_file", lambda: io.FileIO("/dev/full", "r+"))
        for fetched in (lambda: evaluated(split), lambda: split.shards.remote.text("_info.json")):
            with pytest.raises(UserError, match=r"does not fit into .*No space left.*: set TMPDIR to a folder"):
                fetched()


def test_one_tar_under_two_names_is_refused(tmp_path):
    """Of equal count; whichever processes fetch them."""
    write(tmp_path / "set", count=24)
    info = json.loads((tmp_path / "set" / "_info.json").read_text())
    del info["splits"]["val"]["shard_sha256"]
    (tmp_path / "set" / "_info.json").write_text(json.dumps(info))
    shards = sorted((tmp_path / "set").glob("*.tar"))
    shards[3].write_bytes(shards[0].read_bytes())
    with serving(tmp_path) as (url, _):
        split = open_split(url, "set", "val", Reading())
        message = r"set-val-0000.tar and http.*set-val-0003.tar hold the same samples, so others are missing"
        with pytest.raises(DataError, match=message):
            evaluated(split)
        # Two processes of one loader, as a worker has its own copy of the source but for the memory that they share.
        source, _ = split.evaluation(Share(4, 0, 1))
        assert source._contents.is_shared()
        other = pickle.loads(ForkingPickler.dumps(source))
        source._fetched(0)
        with pytest.raises(DataError, match=message):
            other._fetched(3)


def test_digests_are_compared_where_the_info_file_has_some(tmp_path):
    write(tmp_path / "set")
    shard = sorted((tmp_path / "set").glob("*.tar"))[1]
    index = ShardIndex.open(tmp_path / "set", "val")
    content = bytearray(shard.read_bytes())
    content[int(index.offset[7]) + int(index.length[7]) - 1] ^= 1
    shard.write_bytes(content)
    with serving(tmp_path) as (url, _):
        for reading in (Reading(), SKIP):
            with pytest.raises(DataError, match=r"set-val-0001.tar has not the sha256 that its info file says"):
                evaluated(open_split(url, "set", "val", reading), reading.on_error)


def test_a_sample_without_a_class(tmp_path, caplog):
    write(tmp_path / "set", label=lambda number: None if number in (3, 4) else b"%d" % number)
    with serving(tmp_path) as (url, _):
        with pytest.raises(DataError, match=r"The sample s003 in http://.* has no class: give it a `cls` member"):
            evaluated(open_split(url, "set", "val", Reading()))
        batches = evaluated(open_split(url, "set", "val", SKIP), "skip")
    assert counted(batches) == [number for number in range(12) if number not in (3, 4)]
    assert sum(int(batch.broken.sum()) for batch in batches) == 2
    assert "The sample s004 in" in caplog.text


def test_a_shard_without_any_class_is_an_error_even_then(tmp_path):
    write(tmp_path / "set", label=lambda number: None)
    with serving(tmp_path) as (url, _), pytest.raises(DataError, match="No sample of .* has a class"):
        evaluated(open_split(url, "set", "val", SKIP), "skip")


def test_a_broken_image_is_named_and_each_shard_is_fetched_once(tmp_path):
    with ShardWriter(tmp_path / "set", "val", shard_size=6, num_classes=12) as writer:
        for number in range(12):
            writer.write(f"s{number:03d}", {"png": png(number) if number != 8 else b"no image", "cls": b"%d" % number})
    with serving(tmp_path) as (url, served):
        with pytest.raises(DataError, match="s008"):
            evaluated(open_split(url, "set", "val", Reading()))
        served.clear()
        split = open_split(url, "set", "val", SKIP)
        source, plan = split.evaluation(Share(2, 0, 1))
        samples = EvaluationSamples(source, EvaluationCrop(None, None), "skip")
        assert counted(PlannedLoader(samples, plan, 0, False, keeps_workers=False)) == [n for n in range(12) if n != 8]
        # A source that has fetched goes to another process without what it holds.
        assert len(ForkingPickler.dumps(source)) < 10_000
    tars = [path for path in served if path.endswith(".tar")]
    assert len(tars) == len(set(tars)) == 2


def test_a_class_that_is_too_high(tmp_path):
    write(tmp_path / "set", label=lambda number: b"%d" % (number + 1))
    with serving(tmp_path) as (url, _):
        message = r"s011 .* has class 12, but 12 classes are numbered from 0 to 11: subtract 1 from every class"
        with pytest.raises(DataError, match=message):
            evaluated(open_split(url, "set", "val", Reading()))
        assert len(counted(evaluated(open_split(url, "set", "val", SKIP), "skip"))) == 11


@pytest.mark.parametrize("loss", ["cut", "without classes", "of too high a class"])
def test_a_training_batch_that_is_lost_does_not_end_the_run(tmp_path, loss, caplog):
    gone = range(6, 11) if loss == "cut" else range(1, 11)
    lost = {"without classes": None, "of too high a class": b"12"}
    write(tmp_path / "set", label=lambda number: lost.get(loss, b"%d" % number) if number in gone else b"%d" % number)
    if loss == "cut":
        shard = sorted((tmp_path / "set").glob("*.tar"))[1]
        shard.write_bytes(shard.read_bytes()[:1000])
    with serving(tmp_path) as (url, _):
        split = open_split(url, "set", "val", SKIP)
        batches = trained(split, SKIP)
        again = trained(split, SKIP)
    assert [len(batch) for batch in batches] == [2] * 6
    assert "All samples of a batch are lost" in caplog.text
    for batch in batches:
        # What counts is an image that could be read, with its own class.
        assert batch.valid.any()
        assert batch.image[batch.valid][:, 0, 0, 0].tolist() == batch.label[batch.valid].tolist()
        assert not set(batch.label[batch.valid].tolist()) & set(gone)
    assert [batch.label.tolist() for batch in again] == [batch.label.tolist() for batch in batches]


def test_where_nothing_can_be_read_training_ends(tmp_path):
    write(tmp_path / "set")
    for shard in (tmp_path / "set").glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:1000])
    with serving(tmp_path) as (url, _), pytest.raises(DataError, match="has a sample that can be read: upload"):
        trained(open_split(url, "set", "val", SKIP), SKIP)


class Instant(StreamSource):
    """Shards that are there at once, and hold nothing but classes."""

    def order(self, shard):
        class Done:
            def result(self):
                scan = type("Scan", (), {"label": np.zeros(1000, dtype=np.int64)})
                return type("Shard", (), {"scan": scan, "__len__": lambda self: 1000})()

        return Done()


def test_a_huge_block_is_looked_through_once(tmp_path):
    lengths = np.full(1000, 1000)
    looks = []
    lanes = Lanes(12, 10**12 // 64)
    plan = BlockShuffle(batch_size=64, rank=0, world=1, lengths=lengths, block=10**12, seed=0, lanes=lanes)
    shards = RemoteShards(Remote(f"file:{tmp_path}"), ["x"] * 1000, lengths, None, None, CLS, "error")
    source = Instant(shards, plan, lanes)
    source._shards_of = lambda *block: (looks.append(block), StreamSource._shards_of(source, *block))[1]
    for request, _ in zip(plan.requests(0), range(600), strict=False):
        source.fetch(request)
    # The samples of a lane are looked through once a block, and not for every batch: here of a million samples.
    assert len(looks) == 2 * lanes.count


def test_the_shards_that_are_needed_first_are_fetched_first(tmp_path):
    write(tmp_path / "set", count=40, shard_size=1)
    with serving(tmp_path) as (url, served):
        split = open_split(url, "set", "val", Reading())
        source, plan = split.training(Share(4, 0, 1), Reading(block=1000), seed=3)
        source.plan, source.lanes = plan, Lanes(1, 10)
        object.__setattr__(plan, "lanes", Lanes(1, 10))
        served.clear()
        request = next(iter(plan.requests(0)))
        source.fetch(request)
        names = [int(path[-8:-4]) for path in served[:8]]
    # Several are under way at once, and arrive in any order; of 40 shards four are needed now.
    assert set(request.numbers.tolist()) <= set(names)


def test_an_info_file_of_another_program_is_passed_over(tmp_path):
    write(tmp_path / "set")
    lengths = {file.name: 6 for file in (tmp_path / "set").glob("*.tar")}
    (tmp_path / "set" / "_info.json").unlink()
    (tmp_path / "set" / "info.json").write_text(json.dumps({"author": "someone"}))
    (tmp_path / "set" / "sizes.json").write_text(json.dumps(lengths))
    with serving(tmp_path) as (url, _):
        assert len(open_split(url, "set", "val", Reading())) == 12
