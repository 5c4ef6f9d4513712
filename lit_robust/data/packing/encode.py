"""Which pictures are taken, and those that packing has to encode again: other formats, and smaller copies."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from PIL import Image

from lit_robust.shards import IMAGE_EXTENSIONS, decode_rgb

JPEG_QUALITY = 95
# Ending of a file to that of its member in a shard. What no shard holds becomes PNG, which loses nothing.
JPEG_NAMES = {"jpe": "jpg", "jfif": "jpg"}
OTHER_FORMATS = ("BMP", "GIF", "PPM", "TIFF")
MEMBERS = {
    **{extension: extension for extension in IMAGE_EXTENSIONS},
    **JPEG_NAMES,
    **dict.fromkeys(("bmp", "gif", "pbm", "pgm", "pnm", "ppm", "tif", "tiff"), "png"),
}
ENDINGS = tuple(f".{extension}" for extension in MEMBERS)


def extension_of(name: str) -> str:
    """Return a file's extension in lower case, without a dot."""
    return name.rpartition(".")[2].lower()


def is_picture(name: str) -> bool:
    """Return whether a file's name ends as that of a picture does that can be read."""
    return name.lower().endswith(ENDINGS)


def named_by_ending(files: Sequence[str]) -> str:
    """Return how many files there are of each ending, and the first: what to say of those that are not read."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "without ending" for name in files)
    named = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(4))
    return f"{len(files):,} other file{'' if len(files) == 1 else 's'} ({named}), such as {files[0]}"


def is_copied(extension: str) -> bool:
    """Return whether a shard takes a file of this extension byte by byte."""
    return extension in IMAGE_EXTENSIONS or extension in JPEG_NAMES


def packed_extension(extension: str, resized: bool) -> str:
    """Return the extension of an image in a shard; a WebP that may be resized becomes JPEG."""
    return "jpg" if resized and extension == "webp" else MEMBERS[extension]


def readable(content: bytes, extension: str, name: object) -> bytes:
    """Return a picture in a format that shards hold: as it is, or as a PNG of the same pixels.

    Of several frames the first is taken. Grey images of 16 bits keep their upper 8 bits, and alpha is dropped.

    Args:
        content: the encoded image.
        extension: in lower case.
        name: for errors.

    Raises:
        DataError: it cannot be decoded.
    """
    if is_copied(extension):
        return content
    return _png(Image.fromarray(decode_rgb(content, name, (*OTHER_FORMATS, "JPEG", "PNG", "WEBP"))))


def shrink(content: bytes, shorter: int, extension: str, name: object) -> bytes:
    """Return an image with its shorter side of ``shorter`` px.

    Bicubic with antialiasing, which is what Pillow's ``resize`` does; PNG stays PNG, all else becomes JPEG of quality
    95. An image that is not larger is returned as it is, unless it is a WebP.

    Args:
        content: the encoded image, in a format that shards hold.
        shorter: px, at least 1.
        extension: of its member if it were copied.
        name: for errors.

    Raises:
        DataError: it cannot be decoded.
    """
    pixels = decode_rgb(content, name)
    height, width = pixels.shape[:2]
    small = min(height, width) <= shorter
    if small and extension != "webp":
        return content
    image = Image.fromarray(pixels)
    if not small:
        # The longer side is cut to whole pixels as in torchvision's Resize.
        sides = (width * shorter // min(height, width), height * shorter // min(height, width))
        image = image.resize(sides, Image.Resampling.BICUBIC)
    if extension == "png":
        return _png(image)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
