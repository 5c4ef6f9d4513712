"""Which images a source holds, of which class each is, and what is left over."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, get_args

from lit_robust.data.cues import cues, read_categories
from lit_robust.data.packing.classes import Classes, Labels, given_numbers, number_classes
from lit_robust.data.packing.label_file import DIGITS, ENDINGS, labels_of, parse_labels
from lit_robust.data.packing.recognise import ANNOTATIONS, cell_of, find_root, recognise
from lit_robust.data.packing.tree import File, Tree
from lit_robust.errors import DataError, UserError
from lit_robust.shards import IMAGE_EXTENSIONS

Layout = Literal[
    "auto",
    "class-folders",
    "flat",
    "wnid-names",
    "tiny-imagenet-val",
    "imagenet-c",
    "imagenet-a",
    "imagenet-o",
    "cue-conflict",
]


class Image(NamedTuple):
    """One image to pack.

    Attributes:
        file: where its bytes are.
        key: in the shards.
        label: its class number.
    """

    file: File
    key: str
    label: int


@dataclass(frozen=True)
class ImageSet:
    """The images of one split.

    Attributes:
        folder: for the shards, below the output; empty for the output itself.
        images: in the order of their names.
        class_names: what to call each class; empty where nobody said.
        categories: for cue-conflict, category to class numbers.
    """

    folder: str
    images: Sequence[Image]
    class_names: Sequence[str] = ()
    categories: Mapping[str, Sequence[int]] | None = None


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
    tree: Tree, layout: Layout, split: str, labels: Labels, label_file: Path | None, categories: str
) -> Found:
    """Return the images of a source in a layout.

    Args:
        tree: the source.
        layout: how classes follow from folders and names; ``auto`` recognises it.
        split: name of the split; a folder of that name is descended into, where images lie deeper.
        labels: how class numbers follow from classes.
        label_file: for ``flat``, see `parse_labels`.
        categories: for cue-conflict, ``imagenet`` or a JSON file.

    Raises:
        UserError: there are no images, or they are not in this layout.
        DataError: a label file or a name in the source is not what it must be.
    """
    pictures = [file.name for file in tree.files if file.name.lower().endswith(ENDINGS)]
    annotated = {str(PurePosixPath(file.name).parent) for file in tree.files if file.name.endswith(ANNOTATIONS)}
    root = find_root(pictures, split, annotated, label_file is not None)
    here = [_below(root, file) for file in tree.files if file.name.startswith(root)]
    inside = _Source(tree, root, [file for file in here if _is_image(file)], [f for f in here if not _is_image(f)])
    if any(file.name.endswith(".cls") for file in inside.others):
        raise UserError(f"{inside.where} holds WebDataset shards' members: read the shards as they are.")
    if not inside.images:
        raise UserError(f"{inside.where} holds no {', '.join(IMAGE_EXTENSIONS)}: name the folder or tar of the images.")
    if layout == "auto":
        names = [file.name for file in inside.images]
        layout = recognise(names, [file.name for file in inside.others], label_file is not None, inside.where)
    if label_file is not None and layout != "flat":
        raise UserError(f"The layout {layout} needs no label file: leave out --label-file, or use --layout flat.")
    sets, rule = _sets(inside, layout, labels, label_file, categories)
    packed = {image.file.name for found in sets for image in found.images}
    if not packed:
        raise UserError(f"No images in {inside.where} in the layout {layout}: look at `lit-robust data shard --help`.")
    said = f"{inside.where}: layout {layout}, {len(packed):,} images, classes {rule}."
    left = [file.name for file in here if file.name not in packed and not file.name.endswith(ANNOTATIONS)]
    return Found([_restore(found, root) for found in sets], said, left)


@dataclass(frozen=True)
class _Source:
    """The part of a source that is looked at: names are relative to ``root``."""

    tree: Tree
    root: str
    images: Sequence[File]
    others: Sequence[File]

    @property
    def where(self) -> str:
        return f"{self.tree.name}/{self.root}".rstrip("/") if self.root else self.tree.name


def _sets(
    source: _Source, layout: Layout, labels: Labels, label_file: Path | None, categories: str
) -> tuple[list[ImageSet], str]:
    if layout == "cue-conflict":
        return _cue_conflict(source, categories)
    if layout == "imagenet-c":
        return _cells(source, labels)
    if layout == "wnid-names":
        loose = [file for file in source.images if "/" not in file.name]
        wnids = [file.name.split("_")[0].split(".")[0] for file in loose]
        return _one_set(loose, wnids, "imagenet" if labels == "auto" else labels, number_classes)
    if layout == "flat":
        return _flat(source, labels, label_file)
    if layout == "tiny-imagenet-val":
        return _annotated(source, "sorted" if labels == "auto" else labels)
    if layout in ("imagenet-a", "imagenet-o"):
        return _class_folders(source, "imagenet" if labels == "auto" else labels)
    if layout == "class-folders":
        return _class_folders(source, labels)
    raise UserError(f"There is no layout {layout!r}: choose one of {', '.join(get_args(Layout))}.")


def _class_folders(source: _Source, labels: Labels) -> tuple[list[ImageSet], str]:
    inside = [file for file in source.images if _is_in_class(file.name)]
    names = [file.name.partition("/")[0] for file in inside]
    empty = sorted(source.tree.folders(source.root) - set(names))
    if empty and inside:
        raise UserError(
            f"{source.where}/{empty[0]} holds no images right inside it, but would be a class: remove it, or choose "
            "another --layout."
        )
    return _one_set(inside, names, labels, number_classes)


def _is_in_class(name: str) -> bool:
    # Tiny-ImageNet has `<class>/images/`, where others have the images right in the class.
    depth = name.count("/")
    return depth == 1 or (depth == 2 and name.split("/")[1] == "images")


def _flat(source: _Source, labels: Labels, label_file: Path | None) -> tuple[list[ImageSet], str]:
    if label_file is None:
        raise UserError(f"The images of {source.where} lie in one folder: name their classes by --label-file.")
    try:
        text = label_file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"The label file {label_file} cannot be read ({error}): name a text file.") from error
    loose = [file for file in source.images if "/" not in file.name]
    return _labelled(loose, text, str(label_file), "imagenet" if labels == "auto" else labels, labels)


def _annotated(source: _Source, labels: Labels) -> tuple[list[ImageSet], str]:
    file = next((file for file in source.others if file.name == ANNOTATIONS), None)
    if file is None:
        raise UserError(f"{source.where} has no {ANNOTATIONS}: name the folder that has it.")
    where = f"{source.where}/{ANNOTATIONS}"
    try:
        text = source.tree.read(file._replace(name=source.root + file.name)).decode("utf-8-sig")
    except ValueError as error:
        raise DataError(f"{where} is no text ({error}): unpack it again.") from error
    images = [image for image in source.images if image.name.count("/") <= 1]
    return _labelled(images, text, where, labels, labels)


def _labelled(
    files: Sequence[File], text: str, where: str, of_wnids: Labels, of_numbers: Labels
) -> tuple[list[ImageSet], str]:
    """Return the images with the classes that a label file gives, which may be WordNet ids or numbers."""
    names = [file.name for file in files]
    known = parse_labels(text, where, names)
    found = labels_of(names, known, where)
    if all(DIGITS.fullmatch(label) for label in found):
        sets, rule = _one_set(files, found, of_numbers, given_numbers)
    else:
        sets, rule = _one_set(files, found, of_wnids, number_classes)
    unused = len(known) - len(names)
    return sets, f"{rule}; {unused:,} names of the label file have no image" if unused else rule


def _cells(source: _Source, labels: Labels) -> tuple[list[ImageSet], str]:
    found = [(file, cell) for file in source.images if (cell := cell_of(file.name)) is not None]
    classes = number_classes(sorted({file.name.split("/")[-2] for file, _ in found}), labels)
    images: dict[str, list[Image]] = {}
    for file, cell in found:
        wnid, base = file.name.split("/")[-2:]
        images.setdefault(cell, []).append(Image(file, _key(f"{wnid}/{base}"), classes.numbers[wnid]))
    counts = Counter(map(len, images.values()))
    if len(counts) > 1:
        few = min(images, key=lambda cell: len(images[cell]))
        raise DataError(
            f"{few} in {source.where} has {len(images[few])} images, where other cells have {max(counts)}: unpack it "
            "again."
        )
    sets = [ImageSet(cell, members, classes.names) for cell, members in sorted(images.items())]
    return sets, f"{classes.rule}, in {len(sets)} cells"


def _cue_conflict(source: _Source, categories: str) -> tuple[list[ImageSet], str]:
    images = [file for file in source.images if file.name.count("/") == 1]
    shapes = sorted({file.name.split("/")[0] for file in images})
    for file in images:
        shape, base = file.name.split("/")
        said = cues(PurePosixPath(base).stem)[0]
        if said != shape:
            raise DataError(f"{file.name} in {source.where} lies in the folder of {shape}, but its name says {said}.")
    numbers = {shape: number for number, shape in enumerate(shapes)}
    members = [Image(file, _key(file.name), numbers[file.name.split("/")[0]]) for file in images]
    return [ImageSet("", members, shapes, read_categories(categories))], "numbered by the sorted names of their shapes"


def _one_set(
    files: Sequence[File], classes: Sequence[str], labels: Labels, number: Callable[[Sequence[str], Labels], Classes]
) -> tuple[list[ImageSet], str]:
    found = number(sorted(set(classes)), labels)
    images = [Image(file, _key(file.name), found.numbers[name]) for file, name in zip(files, classes, strict=True)]
    return [ImageSet("", images, found.names)], found.rule


def _key(name: str) -> str:
    """Return a file's key: without ending and ``images/``, and as WebDataset ends a key at a dot, without dots."""
    folder, slash, base = name.removeprefix("images/").replace("/images/", "/").rpartition("/")
    return folder + slash + base.rpartition(".")[0].replace(".", "_")


def _below(root: str, file: File) -> File:
    return file._replace(name=file.name[len(root) :]) if root else file


def _restore(found: ImageSet, root: str) -> ImageSet:
    if not root:
        return found
    images = [image._replace(file=image.file._replace(name=root + image.file.name)) for image in found.images]
    return ImageSet(found.folder, images, found.class_names, found.categories)


def _is_image(file: File) -> bool:
    return file.name.lower().endswith(ENDINGS)
