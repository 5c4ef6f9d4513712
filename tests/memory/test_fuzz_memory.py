"""Damage anywhere in a memory: one sentence that names the file, or the very same memory."""

import shutil

import numpy as np
import pytest
from memories import clustered, write_memory

from lit_robust.core.errors import UserError
from lit_robust.memory import open_memory, project
from lit_robust.memory.compression import read_projection
from lit_robust.memory.store import FILE_NAME, KEYS, LABELS, NORMS, PROJECTION

NUMBERS = ["-1", "0", "1e400", "NaN", "1" + "0" * 30, "1" + "0" * 5000, "true", '"60"', "[[[]]]", "null", "60.0"]


def flip(content, random):
    place = int(random.integers(len(content)))
    return content[:place] + bytes([content[place] ^ 1 << int(random.integers(8))]) + content[place + 1 :]


def flip_in_the_head(content, random):
    return flip(content[:200], random) + content[200:]


def truncate(content, random):
    return content[: int(random.integers(len(content)))]


def append(content, random):
    return content + random.bytes(int(random.integers(1, 50)))


def lose_a_block(content, random):
    place, length = int(random.integers(len(content))), int(random.integers(1, 300))
    return content[:place] + bytes(len(content[place : place + length])) + content[place + length :]


def replace_a_number(content, random):
    """Of a manifest, or of an array's header."""
    places = [place for place in range(min(len(content), 4000)) if content[place : place + 1].isdigit()]
    place = places[int(random.integers(len(places)))] if places else 0
    return content[:place] + NUMBERS[int(random.integers(len(NUMBERS)))].encode() + content[place + 1 :]


def nest(content, random):
    """Open many brackets, as of a deep list or a broken header."""
    place, bracket = int(random.integers(len(content))), (b"[", b"(")[int(random.integers(2))]
    return content[:place] + bracket * int(10 ** random.uniform(1, 5)) + content[place:]


DAMAGES = [flip, flip_in_the_head, truncate, append, lose_a_block, replace_a_number, nest]


def whole(folder, check_digest):
    """Return all that is believed of a memory: without a digest the keys' bytes are not."""
    memory = open_memory(folder, check_digest)
    keys = memory.keys.tobytes() if check_digest else memory.keys.shape
    mean, components = read_projection(memory)
    parts = (memory.labels, memory.norms, mean.numpy(), components.numpy())
    return memory.manifest, keys, [part.tobytes() for part in parts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    around = tmp_path_factory.mktemp("fuzz")
    project(write_memory(around / "m", *clustered(count=60)), around / "p", 5, "raw", "both")
    return around / "p"


def test_damaged_memories(folder, tmp_path, fuzz_attempts, fuzz_table):
    random = np.random.default_rng(0)
    expected = {check_digest: whole(folder, check_digest) for check_digest in (True, False)}
    shutil.copytree(folder, tmp_path / "m")
    for attempt in range(fuzz_attempts):
        name = (FILE_NAME, KEYS, LABELS, NORMS, PROJECTION)[attempt % 5]
        damage = DAMAGES[attempt // 5 % len(DAMAGES)]
        content = (folder / name).read_bytes()
        (tmp_path / "m" / name).write_bytes(damage(content, random))
        check_digest = bool(random.integers(2))
        try:
            found = whole(tmp_path / "m", check_digest)
        except UserError as error:
            said = str(error)
            assert said.startswith((str(tmp_path / "m" / name), f"The memory in {tmp_path / 'm'}")), said
            assert said.isprintable(), said
            assert len(said) < 1000, said
            fuzz_table[damage.__name__, "refused"] += 1
        else:
            assert found == expected[check_digest], (name, damage.__name__, attempt)
            fuzz_table[damage.__name__, "the same"] += 1
        (tmp_path / "m" / name).write_bytes(content)
    assert sum(count for (_, outcome), count in fuzz_table.items() if outcome == "refused") > fuzz_attempts // 2
