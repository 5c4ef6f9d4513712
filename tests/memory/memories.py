"""Small memories for tests."""

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from lit_robust.memory import Manifest, open_memory
from lit_robust.memory.build import begin_memory, resume_memory
from lit_robust.memory.compression import unit_length
from lit_robust.memory.store import KEYS, LABELS, NORMS, array_digest

BACKBONE = {"name": "lit_robust/resnet_tiny", "num_classes": 5, "weights_sha256": "a" * 64}


def manifest_of(count, dimensions, num_classes=5, key_type="float32"):
    return Manifest(BACKBONE, "layers.1", "none", {"split": "train"}, count, dimensions, num_classes, key_type, "test")


def write_memory(folder, vectors, labels, num_classes=5, key_type="float32"):
    """Build a memory of some vectors in two batches, the second part first."""
    manifest = manifest_of(*vectors.shape, num_classes, key_type)
    begin_memory(folder, manifest, labels)
    builder = resume_memory(folder, manifest, labels)
    keys, norms = unit_length(vectors.astype(np.float32))
    half = len(vectors) // 2
    for numbers in (np.arange(half, len(vectors)), np.arange(half)):
        builder.write(numbers, keys[numbers], norms[numbers])
    builder.finish()
    return open_memory(folder)


# Holds a lock until its input ends, without the seconds that torch takes to start.
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process_builds(folder):
    """Hold the lock of a memory's build as another process does."""
    words = [sys.executable, "-c", HOLDER, str(folder.parent / f".{folder.name}.lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        yield
        holder.stdin.close()


def rewrite(memory, changed=(), keys=None, labels=None, norms=None):
    """Write a memory again with other arrays and fields, all digests of which are right, and return its folder."""
    arrays = {KEYS: keys, LABELS: labels, NORMS: norms}
    digests = {}
    for name, array in arrays.items():
        if array is not None:
            np.save(memory.folder / name, array)
            digests[f"{name.removesuffix('.npy')}_sha256"] = array_digest(np.ascontiguousarray(array))
    replace(memory.manifest, **digests, **dict(changed)).save(memory.folder)
    return memory.folder


def clustered(count=300, dimensions=12, num_classes=5, seed=0, offset=0.0):
    """Vectors around a centre for each class, all shifted by ``offset``, and shuffled labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, count)
    centres = random.normal(size=(num_classes, dimensions))
    return centres[labels] + 0.3 * random.normal(size=(count, dimensions)) + offset, labels
