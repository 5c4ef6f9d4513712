"""Random damage to shards, kept indexes and info files, at every door: refused in one sentence, or nothing changes."""

import copy
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from shard_making import entries, sample, write_tar

from lit_robust.core.errors import UserError
from lit_robust.data.loading.order import Share
from lit_robust.data.loading.splits import Reading, open_split
from lit_robust.shards import IndexedReader, ShardIndex, ShardWriter
from lit_robust.shards.labels import LabelRule
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
    for shard in map(source._fetched, range(len(source.files))):
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
