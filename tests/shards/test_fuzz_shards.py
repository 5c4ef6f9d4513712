"""Random damage to shards, indexes and info files, whoever wrote them: refused in one sentence, or nothing changes."""

import copy
import json
import os
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset
from shard_making import entries, sample, write_tar

from lit_robust.core.errors import UserError
from lit_robust.data.loading.order import Share
from lit_robust.data.loading.splits import Reading, open_split
from lit_robust.shards import IndexedReader, ShardIndex, ShardWriter
from lit_robust.shards.labels import LabelRule
from lit_robust.shards.scan import scan_open, skip
from lit_robust.shards.tar import DefectError
from lit_robust.shards.verify import report_text, verify_shards

TRUTH = {f"n0/s{n}": (n % 7, sample(n)["jpg"]) for n in range(8)}
NUMBERS = [0, -1, 10**14, 2**63, 10**400, 1.5, 1e308, True, None, "8", [], {}, [[[]]]]
NAMES = ["x" * 5000, "../x.tar", "/x.tar", "a\0b", "\ud800.tar", "\x1b[2J\n.tar", "", ".", "set-val-0000.tar/x"]


class Damage:
    """A folder of two shards, damaged in one way.

    Args:
        folder: with the shards, their info file and their index.
        random: draws what is damaged.
    """

    def __init__(self, folder, random):
        self.random = random
        self.tars = sorted(folder.glob("*.tar"))
        self.info = folder / "_info.json"
        self.index = folder / ".lit_robust" / "split-val.index"

    def below(self, end):
        return int(self.random.integers(end))

    def one_tar(self):
        return self.tars[self.below(2)]

    def change(self, path, edit):
        content = bytearray(path.read_bytes())
        path.write_bytes(edit(content) or content)

    def flip(self, path, places):
        def edit(content):
            at = places[self.below(len(places))] if places else self.below(8 * len(content))
            content[at // 8] ^= 1 << at % 8

        self.change(path, edit)

    def bit_of_a_header(self):
        path = self.one_tar()
        with tarfile.open(path) as tar:
            self.flip(path, [8 * member.offset + bit for member in tar for bit in range(8 * 512)])

    def bit_anywhere(self):
        self.flip(self.one_tar(), None)

    def cut(self):
        self.change(self.one_tar(), lambda content: content[: self.below(len(content))])

    def zeroed_tail(self):
        def edit(content):
            start = self.below(len(content))
            return content[:start] + bytes(len(content) - start)

        self.change(self.one_tar(), edit)

    def lost_block(self):
        def edit(content):
            at, other = (512 * self.below(len(content) // 512) for _ in range(2))
            new = [bytes(512), bytes(content[other : other + 512]), self.random.bytes(512)][self.below(3)]
            content[at : at + 512] = new

        self.change(self.one_tar(), edit)

    def swapped_shards(self):
        first, second = (path.read_bytes() for path in self.tars)
        self.tars[0].write_bytes(second)
        self.tars[1].write_bytes(first)

    def one_shard_twice(self):
        self.tars[self.below(2)].write_bytes(self.one_tar().read_bytes())

    def shard_of_another_format(self):
        content = [b"", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"(\xb5/\xfd", self.random.bytes(3000)][self.below(6)]
        self.one_tar().write_bytes(content)

    def huge_number_in_a_header(self):
        fields = {
            "size": ["9" * 5000, "-1", "1e9", "", "9" * 19],
            "path": ["../x.jpg", "/x", "x\0.jpg", "", "a" * 9000],
        }
        name = ("size", "path")[self.below(2)]
        value = fields[name][self.below(5)]
        path = self.one_tar()
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo("a.jpg")
            info.pax_headers = {name: value}
            tar.addfile(info)

    def names_with_control_sequences(self):
        write_tar(self.one_tar(), [(name.replace("s0", "\x1b[2J\n"), body) for name, body in entries(4)[1:]])

    def bit_of_the_index(self):
        ShardIndex.open(self.info.parent, "val")
        self.flip(self.index, None)

    def cut_index(self):
        ShardIndex.open(self.info.parent, "val")
        self.change(self.index, lambda content: content[: self.below(len(content))])

    def bit_of_the_info_file(self):
        self.flip(self.info, None)

    def cut_info_file(self):
        self.change(self.info, lambda content: content[: self.below(len(content))])

    def deep_info_file(self):
        depth = 10 ** (2 + self.below(4))
        opening, closing = ("[", "]") if self.below(2) else ('{"splits":', "}")
        self.info.write_text(opening * depth + "1" + closing * (depth * self.below(2)))

    def wrong_value_in_the_info_file(self):
        content = json.loads(self.info.read_text())
        places = list(self.values(content))
        parent, key = places[self.below(len(places))]
        values = [*NUMBERS, *NAMES]
        parent[key] = copy.deepcopy(values[self.below(len(values))])
        self.info.write_text(json.dumps(content))

    def values(self, content):
        for key, value in list(content.items() if isinstance(content, dict) else enumerate(content)):
            yield content, key
            if isinstance(value, dict | list):
                yield from self.values(value)

    def what_is_no_file(self):
        path = [*self.tars, self.info, self.index][self.below(4)]
        path.unlink()
        [os.mkfifo, os.mkdir, lambda one: one.symlink_to("nowhere")][self.below(3)](path)


KINDS = [name for name, value in vars(Damage).items() if callable(value)]
KINDS = KINDS[KINDS.index("bit_of_a_header") :]
KINDS.remove("values")


def by_index(folder):
    index = ShardIndex.open(folder, "val", progress=False)
    reader = IndexedReader(index, max_open=8)
    assert all(not array.flags.writeable for array in (index.labels, index.offset))
    return {reader.key(n): (int(index.labels[n]), reader.image_bytes(n)) for n in range(len(reader))}


def by_stream(folder):
    source, _ = open_split(f"file:{folder.parent}", folder.name, "val", Reading()).evaluation(Share(4, 0, 1))
    found = {}
    for shard in map(source._fetched, range(len(source.shards.files))):
        keys = [key.decode("utf-8", "backslashreplace") for key in shard.scan.keys]
        found |= {key: (int(shard.scan.label[n]), shard.image_bytes(n)) for n, key in enumerate(keys)}
    return found


def by_verify(folder):
    reports = verify_shards(folder, LabelRule(), progress=False)
    text = report_text(reports)
    assert "\x1b" not in text
    if sum(report.count for report in reports):
        raise UserError("defects")
    return None


def outcome(door, folder):
    """Return what became of the samples at a door."""
    try:
        found = door(folder)
    except UserError as error:
        return "refused" if "\n" not in str(error) else f"SILENT: many lines, {error}"
    if found is None or found == TRUTH:
        return "nothing changes"
    same_places = list(found) == list(TRUTH) and all(len(found[key][1]) == len(TRUTH[key][1]) for key in TRUTH)
    return "payload" if same_places else f"SILENT: {found.keys() ^ TRUTH.keys()}"


@pytest.fixture
def world(tmp_path):
    """A folder with two shards, their digests and their index; and a copy of it."""
    folder = tmp_path / "set"
    with ShardWriter(folder, "val", shard_size=4, num_classes=7) as writer:
        for number, key in enumerate(TRUTH):
            writer.write(key, sample(number))
    ShardIndex.open(folder, "val")
    return folder, shutil.copytree(folder, tmp_path / "whole")


@pytest.mark.parametrize("digests", [True, False], ids=["with digests", "with counts alone"])
def test_damage_is_never_silent(world, digests, fuzz_attempts, fuzz_table):
    folder, whole = world
    if not digests:
        info = json.loads((whole / "_info.json").read_text())
        del info["splits"]["val"]["shard_sha256"]
        (whole / "_info.json").write_text(json.dumps(info))
    random = np.random.default_rng(int(digests))
    for attempt in range(fuzz_attempts // 2):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder, copy_function=shutil.copy2)
        kind = KINDS[attempt % len(KINDS)]
        getattr(Damage(folder, random), kind)()
        altered = any(
            path.is_file() and path.read_bytes() != (whole / path.name).read_bytes() for path in folder.glob("*.tar")
        )
        for door in (by_index, by_stream, by_verify):
            what = f"{kind} at attempt {attempt}, {door.__name__}"
            try:
                found = outcome(door, folder)
            except Exception as error:
                raise AssertionError(f"{what}: {error!r:.500}") from error
            assert not found.startswith("SILENT"), f"{what}: {found}"
            # A body is guarded by digests alone, which the index does not read.
            assert found != "payload" or (altered and (door is by_index or not digests)), what
            if digests and altered and "info" not in kind and door is not by_index:
                assert found == "refused", what
            fuzz_table[kind.replace("_", " "), f"{door.__name__[3:]}: {found}"] += 1


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
