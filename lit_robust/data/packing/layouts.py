"""The images of each layout, with their classes and keys, and what is left over."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.packing.classes import (
    DIGITS,
    Classes,
    Labels,
    given_numbers,
    labels_of,
    number_classes,
    parse_labels,
)
from lit_robust.data.packing.encode import MEMBERS, is_picture
from lit_robust.data.packing.recognise import (
    ANNOTATIONS,
    Layout,
    cell_of,
    condition_and_category,
    cues,
    find_root,
    read_categories,
    recognise,
)
from lit_robust.data.packing.sources import ARCHIVES, File, Tree


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
class FolderListing:
    """The part of a source that is looked at.

    Attributes:
        tree: all of it.
        root: folder that is looked at, with a ``/`` at its end; empty for all.
        images: files in it; names are relative to ``root``, here and below.
        others: files in it that are not images.
    """

    tree: Tree
    root: str
    images: Sequence[File]
    others: Sequence[File]

    @property
    def where(self) -> str:
        """What to call it in messages."""
        return f"{self.tree.name}/{self.root}".rstrip("/") if self.root else self.tree.name


@dataclass(frozen=True)
class Options:
    """What a user says of the classes.

    Attributes:
        labels: how class numbers follow from classes.
        label_file: for ``flat``, see `parse_labels`.
        categories: for cue-conflict, ``imagenet`` or a JSON file.
        known: names of all classes, in the order of their numbers, where the source may have some of them only.
    """

    labels: Labels
    label_file: Path | None
    categories: str
    known: Sequence[str] = ()

    def labels_or(self, usual: Labels) -> Labels:
        """Return how to number, ``usual`` where the user leaves it open."""
        return usual if self.labels == "auto" else self.labels


def _imagenets_folders(source: FolderListing, options: Options) -> tuple[list[ImageSet], str]:
    return class_images(source, options.labels_or("imagenet"), options.known)


def class_images(source: FolderListing, labels: Labels, known: Sequence[str] = ()) -> tuple[list[ImageSet], str]:
    """Return the images in class folders, at any depth within each.

    Args:
        source: has one folder a class.
        labels: how class numbers follow from the folders' names.
        known: all classes, in the order of their numbers, where the source may have some of them only.

    Raises:
        UserError: a class has no images, or a name that its class cannot have.
    """
    inside = [file for file in source.images if "/" in file.name]
    names = [file.name.partition("/")[0] for file in inside]
    empty = sorted(source.tree.folders(source.root) - set(names))
    if empty and inside and not known:
        raise UserError(
            f"{source.where}/{empty[0]} holds no images, but would be a class: remove it, or add images "
            f"({', '.join(MEMBERS)})."
        )
    return _one_set(inside, names, labels, lambda classes, kind: number_classes(classes, kind, known))


def _wnid_names(source: FolderListing, options: Options) -> tuple[list[ImageSet], str]:
    loose = [file for file in source.images if "/" not in file.name]
    wnids = [file.name.split("_")[0].split(".")[0] for file in loose]
    return _one_set(loose, wnids, options.labels_or("imagenet"), number_classes)


def _flat(source: FolderListing, options: Options) -> tuple[list[ImageSet], str]:
    label_file = options.label_file
    if label_file is None:
        raise UserError(f"The images of {source.where} lie in one folder: name their classes by --label-file.")
    try:
        text = label_file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"The label file {label_file} cannot be read ({why}): name a text file.") from error
    loose = [file for file in source.images if "/" not in file.name]
    return _labelled(loose, text, str(label_file), options.labels_or("imagenet"), options.labels)


def _annotated(source: FolderListing, options: Options) -> tuple[list[ImageSet], str]:
    file = next((file for file in source.others if file.name == ANNOTATIONS), None)
    if file is None:
        raise UserError(f"{source.where} has no {ANNOTATIONS}: name the folder that has it.")
    where = f"{source.where}/{ANNOTATIONS}"
    try:
        text = source.tree.read(file._replace(name=source.root + file.name)).decode("utf-8-sig")
    except ValueError as error:
        raise DataError(f"{where} is not text ({error}): unpack it again.") from error
    images = [image for image in source.images if image.name.count("/") <= 1]
    labels = options.labels_or("sorted")
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


def _cells(source: FolderListing, options: Options) -> tuple[list[ImageSet], str]:
    found = [(file, cell) for file in source.images if (cell := cell_of(file.name)) is not None]
    classes = number_classes(sorted({file.name.split("/")[-2] for file, _ in found}), options.labels)
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


def _cue_conflict(source: FolderListing, options: Options) -> tuple[list[ImageSet], str]:
    images = [file for file in source.images if file.name.count("/") == 1]
    shapes = sorted({file.name.split("/")[0] for file in images})
    for file in images:
        shape, base = file.name.split("/")
        said = cues(PurePosixPath(base).stem)[0]
        if said != shape:
            raise DataError(f"{file.name} in {source.where} lies in the folder of {shape}, but its name says {said}.")
    numbers = {shape: number for number, shape in enumerate(shapes)}
    members = [Image(file, _key(file.name), numbers[file.name.split("/")[0]]) for file in images]
    return [
        ImageSet("", members, shapes, read_categories(options.categories))
    ], "numbered by the sorted names of their shapes"


def _human_stimuli(source: FolderListing, options: Options) -> tuple[list[ImageSet], str]:
    names = [_key(file.name) for file in source.images]
    return _one_set(source.images, [condition_and_category(key)[1] for key in names], "sorted", number_classes)


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


# The sets of a source in a layout, and half a sentence on how their classes are numbered.
READERS: Mapping[Layout, Callable[[FolderListing, Options], tuple[list[ImageSet], str]]] = {
    "class-folders": lambda source, options: class_images(source, options.labels, options.known),
    "flat": _flat,
    "wnid-names": _wnid_names,
    "tiny-imagenet-val": _annotated,
    "imagenet-c": _cells,
    "imagenet-a": _imagenets_folders,
    "imagenet-o": _imagenets_folders,
    "cue-conflict": _cue_conflict,
    "human-stimuli": _human_stimuli,
}


@dataclass(frozen=True)
class FoundImages:
    """What a source holds.

    Attributes:
        sets: one, or for ImageNet-C one a cell.
        said: a sentence that says what the source was taken for.
        left: names of the files that are not packed.
    """

    sets: Sequence[ImageSet]
    said: str
    left: Sequence[str] = field(default=())


def find_images(tree: Tree, layout: Layout, split: str, options: Options) -> FoundImages:
    """Return the images of a source in a layout.

    Args:
        tree: the source.
        layout: how classes follow from folders and names; ``auto`` recognises it.
        split: name of the split; a folder of that name is descended into, where images lie deeper.
        options: what the user says of the classes.

    Raises:
        UserError: there are no images, or they are not in this layout.
        DataError: a label file or a name in the source is not what it must be.
    """
    pictures = [file.name for file in tree.files if is_picture(file.name)]
    annotated = {str(PurePosixPath(file.name).parent) for file in tree.files if file.name.endswith(ANNOTATIONS)}
    labelled = options.label_file is not None
    root = find_root(pictures, split, annotated, labelled)
    here = [_below(root, file) for file in tree.files if file.name.startswith(root)]
    inside = FolderListing(
        tree, root, [f for f in here if is_picture(f.name)], [f for f in here if not is_picture(f.name)]
    )
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
        layout = recognise(names, [file.name for file in inside.others], labelled, inside.where)
    if labelled and layout != "flat":
        raise UserError(f"The layout {layout} needs no label file: leave out --label-file, or use --layout flat.")
    if layout not in READERS:
        raise UserError(f"There is no layout {layout!r}: choose one of {', '.join(READERS)}.")
    sets, rule = READERS[layout](inside, options)
    packed = {image.file.name for found in sets for image in found.images}
    if not packed:
        raise UserError(f"No images in {inside.where} in the layout {layout}: look at `lit-robust data shard --help`.")
    said = f"{inside.where}: layout {layout}, {len(packed):,} images, classes {rule}."
    left = [file.name for file in here if file.name not in packed and not file.name.endswith(ANNOTATIONS)]
    return FoundImages([_restore(found, root) for found in sets], said, left)


def _below(root: str, file: File) -> File:
    return file._replace(name=file.name[len(root) :]) if root else file


def _restore(found: ImageSet, root: str) -> ImageSet:
    if not root:
        return found
    images = [image._replace(file=image.file._replace(name=root + image.file.name)) for image in found.images]
    return ImageSet(found.folder, images, found.class_names, found.categories)
