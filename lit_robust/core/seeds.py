"""Named random streams: every draw follows from the run's seed, a name, and what it is drawn for."""

import hashlib
import os
import zlib

import numpy as np


def run_seed() -> int:
    """Return the seed of ``seed_everything``; 0 where none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def stream_seed(seed: int, stream: str, *numbers: int) -> int:
    """Return a 63-bit seed that differs for every stream and every tuple of numbers.

    Args:
        seed: the run's seed.
        stream: what is drawn, such as ``augmentation`` or ``attack start``.
        numbers: which one, such as epoch and sample; not negative.
    """
    words = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), *numbers]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def key_seed(seed: int, stream: str, key: str) -> int:
    """Return a 63-bit seed that differs for every stream and every sample's key, wherever in a set the sample stands.

    Args:
        seed: the run's seed.
        stream: what is drawn, such as ``scrambled``.
        key: the sample's name.
    """
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return stream_seed(seed, stream, *(int.from_bytes(digest[place : place + 4], "little") for place in (0, 4, 8, 12)))
