"""Decoded pixels against Pillow's ``convert("RGB")``, which published numbers rest on."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from shard_making import encoded, pixels

from lit_robust.core.errors import DataError, UserError
from lit_robust.shards import decode as decode_module
from lit_robust.shards import decode_rgb, decoder_versions

REAL = Path(__file__).parents[2].parent / "shared" / "real" / "imagenet-sample.tar"
# Both decoders are libjpeg-turbo, equal bit for bit in one release; releases may round a few pixels otherwise.
MEAN_LEVELS = 0.5


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def difference(data):
    found = decode_rgb(data, "x")
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found.flags.writeable
    expected = by_pillow(data)
    assert found.shape == expected.shape
    return np.abs(found.astype(int) - expected).mean()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True, "quality": 30}])
@pytest.mark.parametrize("size", [(1, 1), (17, 23), (48, 64)])
def test_jpeg_in_colour(subsampling, options, size):
    image = pixels(1, *size)
    data = encoded(image, "JPEG", subsampling=subsampling, **options)
    assert difference(data) <= MEAN_LEVELS


@pytest.mark.parametrize(("mode", "options"), [("L", {}), ("CMYK", {}), ("RGB", {"keep_rgb": True})])
def test_jpeg_in_other_colour_spaces(mode, options):
    data = encoded(Image.fromarray(pixels(2)).convert(mode), "JPEG", **options)
    assert difference(data) <= MEAN_LEVELS


def test_cmyk_is_pillows_bit_for_bit():
    data = encoded(Image.fromarray(pixels(2)).convert("CMYK"), "JPEG")
    assert difference(data) == 0


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(pixels(3, 20, 40), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert decode_rgb(data, "x").shape == (20, 40, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_is_exact(mode):
    image = Image.fromarray(pixels(4)).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels(5)[..., 0]))
    assert difference(encoded(image, "PNG")) == 0


def test_palette_with_a_transparent_colour():
    image = Image.fromarray(pixels(4)).convert("P")
    assert difference(encoded(image, "PNG", transparency=3)) == 0


def test_16_bit_grey_keeps_its_upper_bits():
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    data = encoded(Image.fromarray(values), "PNG")
    assert np.array_equal(decode_rgb(data, "x"), np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 60}])
def test_webp(options):
    assert difference(encoded(pixels(6), "WEBP", **options)) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0, 0.02, 0.3, 0.7, 0.95])
def test_truncated(kind, part):
    data = encoded(pixels(7, 64, 64), kind)
    with pytest.raises(DataError, match="The image of n01/x is ") as caught:
        decode_rgb(data[: int(part * len(data))], "n01/x")
    assert "\n" not in str(caught.value)


def test_a_truncated_jpeg_with_an_end_marker():
    # Pillow draws the missing part in grey and says nothing.
    data = encoded(pixels(8, 64, 64), "JPEG")
    half = data[: len(data) * 2 // 3] + b"\xff\xd9"
    assert by_pillow(half).shape == (64, 64, 3)
    with pytest.raises(DataError, match="broken"):
        decode_rgb(half, "x")
    printing = encoded(Image.fromarray(pixels(8, 64, 64)).convert("CMYK"), "JPEG")
    with pytest.raises(DataError, match="broken"):
        decode_rgb(printing[: len(printing) * 2 // 3] + b"\xff\xd9", "x")


def test_bytes_left_over_in_a_jpeg_are_harmless():
    data = encoded(pixels(9), "JPEG")
    # Entropy-coded bytes after the last block: the image is whole, as in some files of ImageNet.
    assert difference(data[:-2] + b"\x12\x34\x56\x78" * 20 + b"\xff\xd9") <= MEAN_LEVELS
    assert difference(data + b"junk") <= MEAN_LEVELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_flipped_bytes_end_in_an_image_or_a_data_error(kind):
    data = encoded(pixels(10, 32, 32), kind)
    random = np.random.default_rng(0)
    refusals = 0
    for at in random.integers(0, len(data), 300):
        damaged = bytearray(data)
        damaged[at] ^= int(random.integers(1, 256))
        try:
            assert decode_rgb(bytes(damaged), "x").dtype == np.uint8
        except DataError:
            refusals += 1
    assert refusals > {"JPEG": 10, "PNG": 250, "WEBP": 5}[kind]


@pytest.mark.parametrize("data", [b"", b"no image", encoded(pixels(0), "GIF"), encoded(pixels(0), "BMP")])
def test_other_files(data):
    with pytest.raises(DataError, match="none of JPEG, PNG, WEBP"):
        decode_rgb(data, "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_too_many_pixels(kind, monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 32 * 24 - 1)
    with pytest.raises(DataError, match="more than 767 pixels"):
        decode_rgb(encoded(pixels(0), kind), "x")


def test_a_decompression_bomb_is_not_decoded():
    header = encoded(np.zeros((1, 1, 3), np.uint8), "JPEG")
    at = header.index(b"\xff\xc0") + 5
    bomb = header[:at] + b"\xff\xdc\xff\xdc" + header[at + 4 :]
    with pytest.raises(DataError, match="more than 89478485 pixels"):
        decode_rgb(bomb, "x")


def test_pillows_switch_for_half_images_must_be_off(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UserError, match="LOAD_TRUNCATED_IMAGES"):
        decode_rgb(encoded(pixels(0), "PNG"), "x")


def test_versions_are_words():
    versions = decoder_versions()
    assert {"simplejpeg", "pillow"} <= versions.keys()
    assert all(isinstance(version, str) and version for version in versions.values())


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/real/imagenet-sample.tar")
def test_real_jpegs():
    with tarfile.open(REAL) as tar:
        members = [member for member in tar if member.isfile()]
        assert len(members) == 200
        for member in members[::20]:
            file = tar.extractfile(member)
            assert difference(file.read()) <= MEAN_LEVELS, member.name
