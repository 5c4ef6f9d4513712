"""Damage anywhere in a shard, whoever wrote it: an error with shard and byte, or the very same samples."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import webdataset
from shard_making import sample

from lit_robust.shards import ShardWriter
from lit_robust.shards.scan import scan_open, skip
from lit_robust.shards.tar import DefectError

KEYS = ["n01/s0", "n01/s1", "s2", "t"]


def by_webdataset(folder):
    path = folder / "webdataset.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number, key in enumerate(KEYS):
            writer.write({"__key__": key, **sample(number)})
    return path


def by_tar(folder):
    if shutil.which("tar") is None:
        pytest.skip("needs the tar program")
    names = []
    for number, key in enumerate(KEYS):
        for extension, body in sample(number).items():
            names.append(f"{key}.{extension}")
            (folder / names[-1]).parent.mkdir(exist_ok=True)
            (folder / names[-1]).write_bytes(body)
    subprocess.run(["tar", "-cf", "tar.tar", *names], cwd=folder, check=True)
    return folder / "tar.tar"


def by_us(folder):
    with ShardWriter(folder, "val") as writer:
        for number, key in enumerate(KEYS):
            writer.write(key, sample(number))
    return next(folder.glob("*.tar"))


@pytest.fixture(params=[by_webdataset, by_tar, by_us], ids=lambda writer: writer.__name__)
def shard(request, tmp_path):
    """A shard that is open for writing, its content, and what a scan of it finds."""
    path = request.param(tmp_path)
    descriptor = os.open(path, os.O_RDWR)
    yield path, descriptor, path.read_bytes(), rows(scan_open(path, descriptor))
    os.close(descriptor)


def rows(scan):
    columns = [array.tolist() for array in (scan.offset, scan.length, scan.extension, scan.label)]
    return dict(zip(scan.keys, zip(*columns, strict=True), strict=True))


def strictly(path, descriptor, size):
    """Return the samples, or None where the shard was refused with its name and a byte that it has."""
    try:
        return rows(scan_open(path, descriptor))
    except DefectError as caught:
        error = caught
    assert str(error).startswith(f"{path} is defective at byte {error.found.offset}, ")
    assert 0 <= error.found.offset <= size
    assert "\n" not in str(error)
    return None


def test_it_is_whole(shard):
    _, _, content, whole = shard
    for number, key in enumerate(KEYS):
        offset, length, _, label = whole[key.encode()]
        assert content[offset : offset + length] == sample(number)["jpg"]
        assert label == number % 7
    assert list(whole) == [key.encode() for key in KEYS]


def test_cut_anywhere(shard):
    path, descriptor, content, whole = shard
    end = -(-len(content.rstrip(b"\0")) // 512) * 512 + 1024
    # Every byte is a matter of half a minute: every fifth, and those around the borders of blocks.
    cuts = {*range(0, len(content), 5), *(place + by for place in range(0, len(content), 512) for by in (-1, 0, 1))}
    for cut in sorted((cut for cut in cuts if 0 <= cut < len(content)), reverse=True):
        os.ftruncate(descriptor, cut)
        # Only padding behind the two blocks of zeros may be missing.
        assert strictly(path, descriptor, cut) == (whole if cut >= end else None), cut
        scan = scan_open(path, descriptor, on_defect=skip)
        kept = rows(scan)
        assert list(kept.items()) == list(whole.items())[: len(kept)], cut
        assert bool(scan.defects) == (cut < end)


def test_flipped_bytes(shard):
    path, descriptor, content, whole = shard
    random = np.random.default_rng(0)
    headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    assert len(headers) >= 3 * len(KEYS)
    places = [
        *random.integers(0, len(content), 1500).tolist(),
        *(at + int(random.integers(512)) for at in headers * 30),
    ]
    outcomes = {"refused": 0, "the same": 0, "another label": 0}
    for at in places:
        os.pwrite(descriptor, bytes([content[at] ^ int(random.integers(1, 256))]), at)
        found = strictly(path, descriptor, len(content))
        scan = scan_open(path, descriptor, on_defect=skip)
        os.pwrite(descriptor, content[at : at + 1], at)
        kept = rows(scan)
        if found is None:
            outcomes["refused"] += 1
            # What is left is right, and what is lost is told.
            assert scan.defects
            assert all(whole[key] == row for key, row in kept.items()), at
            continue
        assert kept == found
        assert not scan.defects
        # Nothing guards a body: a flip in a `cls` may make another number of it, and changes nothing else.
        different = [key for key in whole if found.get(key) != whole[key]]
        outcomes["another label" if different else "the same"] += 1
        assert list(found) == list(whole), at
        assert len(different) <= 1
        assert all(found[key][:3] == whole[key][:3] for key in different), at
    assert outcomes["refused"] > 25 * len(headers), outcomes


def test_flips_of_many_bytes_in_a_row(shard):
    """A lost block, as disks and networks lose them: zeros, or the content of another block."""
    path, descriptor, content, whole = shard
    random = np.random.default_rng(1)
    last = max(offset + length for offset, length, _, _ in whole.values())
    for at in range(0, last, 512):
        other = int(random.integers(0, len(content) // 512)) * 512
        for block in (bytes(512), content[other : other + 512], random.bytes(512)):
            os.pwrite(descriptor, block, at)
            found = strictly(path, descriptor, len(content))
            os.pwrite(descriptor, content[at : at + 512], at)
            if found is not None:
                assert list(found) == list(whole), (at, other)
                assert [row[:3] for row in found.values()] == [row[:3] for row in whole.values()]
