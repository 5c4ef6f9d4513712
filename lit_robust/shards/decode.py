"""Encoded images to RGB arrays, with the pixels that published evaluations saw.

Published numbers rest on torchvision's ``ImageFolder`` (``datasets/folder.py``, ``pil_loader``): Pillow's
``Image.open(...).convert("RGB")``. So a turned image stays as it is stored, whatever its EXIF orientation says; alpha
is dropped, not blended; CMYK goes through Pillow's formula. simplejpeg and Pillow both rest on libjpeg-turbo and, of
the same release, give the same pixels; simplejpeg takes about half the time and reports damage that Pillow draws over.
"""

import importlib.metadata
import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError, features

from lit_robust.core.errors import DataError, UserError

MAX_PIXELS = 89_478_485  # Pillow warns from here on: 256 MiB of RGB.
FORMATS = ("JPEG", "PNG", "WEBP")
JPEG_START = b"\xff\xd8\xff"
# libjpeg's words where all pixels came out of fewer bytes than there were; files of ImageNet are like that.
HARMLESS = "extraneous bytes before marker 0xd9"
DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG")


def decode_rgb(data: bytes, name: object, formats: tuple[str, ...] = FORMATS) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG or WebP, or another format that is asked for; the content decides which, not the name.

    Grey images of 16 bits keep their upper 8 bits, as those of colour images do; Pillow's ``convert`` would clip them.

    Args:
        data: the file's content.
        name: of the sample; its text is composed for an error alone.
        formats: Pillow's names of those that are taken.

    Returns:
        uint8 ``[H, W, 3]``, RGB, in C order, a copy that may be written.

    Raises:
        DataError: it is of another format, is truncated or damaged, or has more than 89 million pixels.
    """
    if data.startswith(JPEG_START):
        image = _fast_jpeg(data, name)
        if image is not None:
            return image
    return _with_pillow(data, name, formats)


def decoder_versions() -> dict[str, str]:
    """Return the versions that decoded pixels depend on, for the results file."""
    return {
        "simplejpeg": importlib.metadata.version("simplejpeg"),
        "pillow": importlib.metadata.version("pillow"),
        "pillow_libjpeg_turbo": str(features.version("libjpeg_turbo")),
        "pillow_webp": str(features.version("webp")),
    }


def _fast_jpeg(data: bytes, name: object) -> NDArray[np.uint8] | None:
    """Decode a JPEG, or return None where only Pillow can, or does it as published numbers need it."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(height, width, name)
        # Pillow's way from CMYK to RGB is not libjpeg's: here the decoding only looks for damage.
        printing = colours in ("CMYK", "YCCK")
        image: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "CMYK" if printing else "RGB")
    except ValueError as error:
        damaged = any(words in str(error) for words in DAMAGE) and HARMLESS not in str(error)
        if damaged:
            raise _broken(name, str(error)) from error
        return None
    return None if printing else image


def _with_pillow(data: bytes, name: object, formats: tuple[str, ...]) -> NDArray[np.uint8]:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UserError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so half an image would count: leave it off.")
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check_pixels(image.height, image.width, name)
            if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                raise _broken(name, "it has 32 bits a pixel, whose range no file tells")
            if image.mode in ("I", "I;16", "I;16B", "I;16L"):
                grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise DataError(f"The image of {name} is none of {', '.join(formats)}, or damaged: replace it.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    # Pillow has no one error for a broken file; these are what its three plugins raise.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
        raise _broken(name, str(error)) from error


def _check_pixels(height: int, width: int, name: object) -> None:
    if height * width > MAX_PIXELS:
        raise _too_large(name)


def _too_large(name: object) -> DataError:
    return DataError(f"The image of {name} has more than {MAX_PIXELS} pixels: scale it down before packing it.")


def _broken(name: object, what: str) -> DataError:
    return DataError(f"The image of {name} is broken ({what}): replace it, or copy its shard again.")
