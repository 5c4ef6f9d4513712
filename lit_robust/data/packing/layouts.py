"""Which images a source holds, of which class each is, and what is left over."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lit_robust.core.errors import UserError
from lit_robust.data.packing.archive import ARCHIVES
from lit_robust.data.packing.classes import Labels
from lit_robust.data.packing.encode import MEMBERS, is_picture
from lit_robust.data.packing.image_sets import ImageSet, Options, Source, image_sets
from lit_robust.data.packing.recognise import ANNOTATIONS, Layout, find_root, recognise
from lit_robust.data.packing.tree import File, Tree


@dataclass(frozen=True)
class Found:
    """What a source holds.

    Attributes:
        sets: one, or for ImageNet-C one a cell.
        said: a sentence that says what the source was taken for.
        left: names of the files that are not packed.
    """

    sets: Sequence[ImageSet]
    said: str
    left: Sequence[str] = field(default=())


def find_images(
    tree: Tree,
    layout: Layout,
    split: str,
    labels: Labels,
    label_file: Path | None,
    categories: str,
    known: Sequence[str] = (),
) -> Found:
    """Return the images of a source in a layout.

    Args:
        tree: the source.
        layout: how classes follow from folders and names; ``auto`` recognises it.
        split: name of the split; a folder of that name is descended into, where images lie deeper.
        labels: how class numbers follow from classes.
        label_file: for ``flat``, see `parse_labels`.
        categories: for cue-conflict, ``imagenet`` or a JSON file.
        known: names of all classes, in the order of their numbers, where class folders may be some of them only.

    Raises:
        UserError: there are no images, or they are not in this layout.
        DataError: a label file or a name in the source is not what it must be.
    """
    pictures = [file.name for file in tree.files if is_picture(file.name)]
    annotated = {str(PurePosixPath(file.name).parent) for file in tree.files if file.name.endswith(ANNOTATIONS)}
    root = find_root(pictures, split, annotated, label_file is not None)
    here = [_below(root, file) for file in tree.files if file.name.startswith(root)]
    inside = Source(tree, root, [f for f in here if is_picture(f.name)], [f for f in here if not is_picture(f.name)])
    if any(file.name.endswith(".cls") for file in inside.others):
        raise UserError(f"{inside.where} holds WebDataset shards' members: read the shards as they are.")
    packed_up = [file.name for file in inside.others if file.name.lower().endswith(ARCHIVES)]
    if not inside.images and packed_up:
        raise UserError(
            f"{inside.where} holds no images but the archive {packed_up[0]}: name it itself where it is a tar, or "
            "unpack it and name the folder."
        )
    if not inside.images:
        raise UserError(f"{inside.where} holds no {', '.join(MEMBERS)}: name the folder or tar of the images.")
    if layout == "auto":
        names = [file.name for file in inside.images]
        layout = recognise(names, [file.name for file in inside.others], label_file is not None, inside.where)
    if label_file is not None and layout != "flat":
        raise UserError(f"The layout {layout} needs no label file: leave out --label-file, or use --layout flat.")
    sets, rule = image_sets(inside, layout, Options(labels, label_file, categories, known))
    packed = {image.file.name for found in sets for image in found.images}
    if not packed:
        raise UserError(f"No images in {inside.where} in the layout {layout}: look at `lit-robust data shard --help`.")
    said = f"{inside.where}: layout {layout}, {len(packed):,} images, classes {rule}."
    left = [file.name for file in here if file.name not in packed and not file.name.endswith(ANNOTATIONS)]
    return Found([_restore(found, root) for found in sets], said, left)


def _below(root: str, file: File) -> File:
    return file._replace(name=file.name[len(root) :]) if root else file


def _restore(found: ImageSet, root: str) -> ImageSet:
    if not root:
        return found
    images = [image._replace(file=image.file._replace(name=root + image.file.name)) for image in found.images]
    return ImageSet(found.folder, images, found.class_names, found.categories)
