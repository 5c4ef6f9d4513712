"""Smaller copies of images, for those who ask: the one case in which packing encodes an image again."""

import io

from PIL import Image

from lit_robust.shards import decode_rgb

JPEG_QUALITY = 95


def resized_extension(extension: str) -> str:
    """Return the extension of an image that may be resized: WebP becomes JPEG."""
    return "jpg" if extension == "webp" else extension


def shrink(content: bytes, shorter: int, extension: str, name: str) -> bytes:
    """Return an image with its shorter side of ``shorter`` px.

    Bicubic with antialiasing, which is what Pillow's ``resize`` does; PNG stays PNG, all else becomes JPEG of quality
    95. An image that is not larger is returned as it is, unless it is a WebP.

    Args:
        content: the encoded image.
        shorter: px, at least 1.
        extension: in lower case, as the source has it.
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
    file = io.BytesIO()
    if extension == "png":
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
