"""Small images and tars that the tests of this room share."""

import io
import tarfile

import numpy as np
from PIL import Image


def pixels(seed, height=24, width=32):
    """Return a smooth image, as JPEG needs it, that differs from seed to seed."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin((rows * (1 + channel) + columns * (1 + seed % 5)) / 9 + seed) for channel in range(3)]
    return (127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)


def encoded(image, kind, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def sample(number):
    """Return the members of a sample: its image, its class, and a member that no reader here needs."""
    return {
        "jpg": encoded(pixels(number), "JPEG"),
        "cls": str(number % 7).encode(),
        "json": b'{"number": %d}' % number,
    }


def entries(count, folder=""):
    return [(f"{folder}s{n:04d}.{extension}", body) for n in range(count) for extension, body in sample(n).items()]


def write_tar(path, members, form=tarfile.GNU_FORMAT, **fields):
    with tarfile.open(path, "w", format=form) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(body))
    return path
