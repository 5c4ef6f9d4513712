"""Damaged and forged checkpoints: the network's own weights or one sentence, no traceback, and nothing of a file runs.

What cannot be seen: a bit of the numbers themselves in a container without checksums (legacy, safetensors), and what a
forger writes into an archive together with its checksum. The weights' sha256 in every result tells such files apart.
"""

import argparse
import io
import os
import random
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lit_robust.core.errors import UserError
from lit_robust.models.weights import load_weights, tensors_digest


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


class Runs:
    """What a hostile file asks for: it would leave a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def saved(state, **options):
    content = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    stream = io.BytesIO()
    torch.save({**content, "args": argparse.Namespace(lr=0.1)}, stream, **options)
    return stream.getvalue()


def flipped(data, generator, start=0, end=None):
    """Flip one to three bits."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 3)):
        changed[generator.randrange(start, end or len(data))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def rewritten(archive, member, change):
    """Return an archive with another content of one member, whose checksum is right again."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(stream, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, change(data) if name.endswith(member) else data)
    return stream.getvalue()


def forged(state, generator, trace):
    """Return a file whose parts have the wrong types, names or sizes, or that asks for something to be run."""
    state = dict(state)
    name = generator.choice(list(state))
    tensor = state[name]
    entry = generator.choice(
        [None, 3, "text", [tensor], {"x": tensor}, tensor.bool(), tensor.to(torch.complex64), tensor.to_sparse(),
         tensor[..., None], torch.zeros(1).expand(2**40), torch.zeros(1).expand(2**20, 2**20), Runs(trace),
         torch.full_like(tensor.float(), torch.nan), torch.empty(0), nn.Parameter(tensor.float() + 1, False)]
    )  # fmt: skip
    key = generator.choice(
        ["\ud800", "a\nb", "\x1b[2J", 7, None, ("a", 1), "", "." * 5000, "module." * 50 + "0.weight"]
    )
    place = generator.choice(["entry", "key", "outside", "around"])
    if place == "entry":
        content = {**state, name: entry}
    elif place == "key":
        content = {(key if other == name else other): value for other, value in state.items()}
    elif place == "outside":
        content = {"state_dict": state, key: entry}
    else:
        content = generator.choice([[state, entry], {key: entry}, entry, {"model": {key: {**state, name: entry}}}])
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=generator.random() < 0.5)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore")  # torch tells that sparse tensors are young.
def test_damaged_and_forged_checkpoints(tmp_path, fuzz_attempts, fuzz_table):
    torch.manual_seed(0)
    generator = random.Random(0)
    state = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    digest, trace = tensors_digest(state), tmp_path / "ran"
    archive, legacy = saved(state), saved(state, _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "w.safetensors", {"mean": "[0.5, 0.5, 0.5]"})
    tensors = (tmp_path / "w.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", tensors[:8])[0]
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    damages = {
        "archive, bits": lambda: flipped(archive, generator),
        "archive, directory bits": lambda: flipped(archive, generator, archive.rindex(b"PK\x05\x06") - 900),
        "archive, cut": lambda: archive[: generator.randrange(len(archive))],
        "archive, pickle forged": lambda: rewritten(archive, "data.pkl", lambda data: flipped(data, generator)),
        "legacy, pickle bits": lambda: flipped(legacy, generator, 0, len(legacy) - numbers - 400),
        "legacy, cut": lambda: legacy[: generator.randrange(len(legacy))],
        "safetensors, header bits": lambda: flipped(tensors, generator, 0, header),
        "safetensors, cut": lambda: tensors[: generator.randrange(len(tensors))],
        "forged": lambda: forged(state, generator, trace),
    }
    # No checksum covers these: a changed place, stride or name of a number is one that another file could hold.
    may_change = ("archive, pickle forged", "legacy, pickle bits", "forged")
    changed, sentences = [], []
    for attempt in range(fuzz_attempts):
        damage = list(damages)[attempt % len(damages)]
        file = tmp_path / "w.pt"
        file.write_bytes(damages[damage]())
        loaded = network()
        try:
            load_weights(loaded, file, "a network", 2)
        except UserError as error:
            sentences.append(str(error))
            outcome = "refused in a sentence"
        else:
            same = tensors_digest(loaded.state_dict()) == digest
            outcome = "loaded as it was" if same else "loaded with other numbers"
            if not same and damage not in may_change:
                changed.append((damage, attempt))
        fuzz_table[damage, outcome] += 1
        assert not trace.exists(), (damage, attempt)
    assert not changed
    assert sentences
    assert not [sentence for sentence in sentences if not sentence.isprintable() or len(sentence) > 1000]
