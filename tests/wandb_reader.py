"""Reads what an offline W&B run wrote, without W&B's own reader, which it does not offer."""

import json
import struct
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(file):
    """Yield the protobuf records of a .wandb file: LevelDB's log format behind a 7-byte header."""
    data = Path(file).read_bytes()
    magic, version = struct.unpack("<HB", data[4:7])
    assert (data[:4], magic, version) == (b":W&B", 0xBEE1, 0)
    place, parts = 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _checksum, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            place += BLOCK - place % BLOCK
            continue
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
        else:
            assert kind in (FIRST, MIDDLE)


def put(values, item):
    """Put a record's value where its key, or its path of keys, says."""
    *outer, last = item.nested_key or [item.key]
    for key in outer:
        values = values.setdefault(key, {})
    values[last] = json.loads(item.value_json)


def read_run(folder):
    """Return (history values by key, config) of the newest offline run below a folder."""
    file = max(Path(folder).glob("**/*.wandb"), key=lambda path: path.stat().st_mtime)
    history, config = {}, {}
    for record in records(file):
        for item in record.history.item:
            put(history, item)
        for item in [*record.run.config.update, *record.config.update]:
            put(config, item)
    return file.parent, history, config
