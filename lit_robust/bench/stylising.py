"""`lit-robust bench stylising`: images stylised by AdaIN, against the script that Stylized-ImageNet was made with."""

import io
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.utils import save_image

from lit_robust.bench.measuring import alternate, machine, ratio, table
from lit_robust.core.errors import UserError
from lit_robust.data.loading.splits import Reading, TableSplit, open_table
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.packing.derivation import BATCH, Derivation
from lit_robust.data.packing.stylised import Stylised
from lit_robust.stimuli.adain import AdaIn, decoder, renormalised, statistics, vgg

PACKAGES = ("torch", "torchvision", "pillow")
SIDE = 224


def bench_stylising(folder: Path, split: str, images: int, styles: int, rounds: int) -> str:
    """Time the way from encoded images to encoded stylised ones, ours and the script's, in turn; return the table.

    Both take batches of 16 in one process, decode, stylise and write PNGs. Weights are random, which changes no speed,
    and styles are images of the same set. In Stylized-ImageNet a painting is the style of 17 images on average: ours
    asks for each style once, and begins every round without any.

    Args:
        folder: shards of one set, such as ``data/sample/imagenet``.
        split: its split.
        images: how many a measurement.
        styles: how many pictures they take their styles from.
        rounds: measurements of each.

    Raises:
        UserError: the split has fewer images.
    """
    source = open_table(folder, split, Reading())
    if len(source) < max(images, styles):
        raise UserError(f"{folder} has {len(source)} images in {split}, fewer than {max(images, styles)}: lower them.")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        pictures = Path(place) / "styles"
        pictures.mkdir()
        for number in range(styles):
            # As the script prepares paintings: the central square, 224 px, saved as JPEG.
            picture = EvaluationCrop(SIDE, SIDE)(_pixels(source, number))
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(pictures / f"{number:04d}.jpg")
        parts = {"vgg": vgg(), "decoder": decoder()}
        for name, part in parts.items():
            torch.save(part.state_dict(), Path(place) / f"{name}.pth")
        stimulus = Stylised(styles=pictures, vgg=Path(place) / "vgg.pth", decoder=Path(place) / "decoder.pth")
        one = Derivation(
            source=source, folder=Path(place), split=split, stimulus=stimulus, crop=EvaluationCrop(256, SIDE)
        )
        numbers = range(images)
        chosen = [stimulus.pictures[stimulus.chosen(one.origin(number))] for number in numbers]
        network = AdaIn(parts["vgg"], parts["decoder"])

        def ours() -> Callable[[], list[bytes | None]]:
            fresh = replace(stimulus)
            fresh.networks.style(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))  # The files are read before the clock.
            way = replace(one, stimulus=fresh)
            batches = [numbers[begin : begin + BATCH] for begin in range(0, images, BATCH)]
            return lambda: [made for batch in batches for made in way.encoded(batch)]

        def theirs() -> Callable[[], list[bytes | None]]:
            return lambda: script(network, [_file(source, number) for number in numbers], chosen, BATCH)

        def timed(prepare: Callable[[], Callable[[], list[bytes | None]]]) -> float:
            work = prepare()
            begin = time.perf_counter()
            made = work()
            seconds = time.perf_counter() - begin
            assert sum(file is not None for file in made) == images
            return images / seconds

        contenders = {"lit_robust": lambda: timed(ours), "the script's loop": lambda: timed(theirs)}
        figures = alternate(contenders, rounds, "images/s")
    title = f"AdaIN, {images} images of {SIDE} px in batches of {BATCH}, {styles} styles"
    ratios = {"the script's loop": ratio(figures["lit_robust"], figures["the script's loop"])}
    return f"{machine(PACKAGES)}\n\n{table(title, list(figures.values()), ratios)}"


def _file(source: TableSplit, number: int) -> bytes:
    reader, row = source.table.find(number)
    return bytes(reader.image_bytes(row))


def _pixels(source: TableSplit, number: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(_file(source, number))) as opened:
        return np.array(opened.convert("RGB"))


def script(network: AdaIn, contents: Sequence[bytes], styles: Sequence[Path], batch: int) -> list[bytes | None]:
    """Stylise as rgeirhos/Stylized-ImageNet's ``preprocess_imagenet.py`` and ``adain.py`` do, written anew.

    Contents are resized to 256 and cropped; a batch's styles are read and encoded with it, each as often as it comes.

    Args:
        network: encoder and decoder, as `lit_robust.stimuli.adain` builds them, in torch's usual memory layout.
        contents: encoded images.
        styles: a picture for each.
        batch: images at a time.

    Returns:
        PNGs.
    """
    prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(SIDE), transforms.ToTensor()])
    made: list[bytes | None] = []
    for begin in range(0, len(contents), batch):
        part = slice(begin, begin + batch)
        images = torch.stack([_opened(io.BytesIO(content), prepare) for content in contents[part]])
        pictures = torch.stack([_opened(path, transforms.ToTensor()) for path in styles[part]])
        with torch.no_grad():
            code, style = network.encoder(images), network.encoder(pictures)
            stylised = network.decoder(renormalised(code, statistics(style)))
        for image in stylised:
            file = io.BytesIO()
            save_image(image, file, format="PNG")
            made.append(file.getvalue())
    return made


def _opened(file: io.BytesIO | Path, prepare: Callable[[Image.Image], Tensor]) -> Tensor:
    with Image.open(file) as opened:
        return prepare(opened.convert("RGB"))
