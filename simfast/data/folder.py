"""Images and label maps in folders: as published sets have them, and as people do."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from simfast.data.dataset import SegmentationDataset
from simfast.data.label_files import OPTION, LabelFiles, pair_up, require_own
from simfast.data.labels import LabelCoding
from simfast.data.list_files import LIST_SUFFIXES, read_list
from simfast.data.listing import Folders, by_name, find_files, name_of, places, require_folder, sentences
from simfast.data.pictures import IMAGE_SUFFIXES, LABEL_SUFFIXES
from simfast.data.predictions import written_here

log = logging.getLogger("simfast")

HELD_OUT = ("val", "valid", "validation", "eval", "dev", "test", "testing")
"""Sub-folders that are not to train on, where the photographs lie in the root itself."""
LISTED_LABELS = "images/ -> labels/"
"""Where the label map of a listed image is, if nothing says it."""


def open_pairs(
    images: Path,
    labels: Path | None,
    size: tuple[int, int],
    coding: LabelCoding,
    resize_labels: bool = True,
    size_tolerance: float | None = 0.0,
    read_label: Callable[[Path], np.ndarray] | None = None,
) -> SegmentationDataset:
    """Images of a folder with the label maps of the same name (without suffix) of another one, in the order of names.

    Args:
        images: folder of pictures (.png .jpg .jpeg .bmp .webp .tif .tiff .npy); its sub-folders are left alone.
        labels: folder of label maps (.png .bmp .tif .tiff .npy), or None where there are none or none may be used.
        size: width and height of what comes out, pixels.
        coding: what the label maps hold.
        resize_labels: False keeps labels at the size of their files, to be scored at.
        size_tolerance: as `SegmentationDataset`'s.
        read_label: file -> train ids, in place of `coding.read`.

    Raises:
        ValueError: a missing or empty folder, two files of one name. Images without a label map are the
            data set's `problems`.
    """
    pictures, passed_over = find_files(images, IMAGE_SUFFIXES, nested=False)
    names = by_name(images, pictures, "an image", IMAGE_SUFFIXES)
    files, problems, said = None, (), sentences(images, passed_over)
    if labels is not None:
        files, problems, unused = _of_same_names(names, labels, nested=False)
        said += unused
    return SegmentationDataset(
        list(names),
        list(pictures),
        files,
        size,
        coding,
        read_label,
        size_tolerance,
        resize_labels,
        problems,
        passed_over=said,
    )


def open_folder(
    root: Path | None,
    split: str,
    size: tuple[int, int],
    coding: LabelCoding,
    *,
    labelled: bool = True,
    resize_labels: bool = True,
    label_files: str | None = None,
    image_files: Path | None = None,
) -> SegmentationDataset:
    """A user's own data; `simfast.data.open_dataset` says where they may lie.

    Raises:
        ValueError: no such split or list, a pattern that does not fit, or what `open_pairs` raises.
    """
    made = partial(SegmentationDataset, size=size, coding=coding, resize_labels=resize_labels)
    if image_files is None and Path(split).suffix.lower() in LIST_SUFFIXES and not (root / split).is_dir():
        return _open_list(root, split, label_files, labelled, made)
    images, default, said = _place(root, split, image_files, labelled and label_files is None)
    files = None if label_files is None else LabelFiles(label_files, images, root)
    pictures, passed_over = find_files(images, IMAGE_SUFFIXES, leave=partial(_leave, images, root, files))
    pairs: dict[Path, Path | None] = {}
    if files is not None:
        if labelled:
            files.require()
        pairs, no_images = pair_up(pictures, files)
        if labelled and pictures and not pairs:
            rule = f"{files.pattern!r} must apply to the path of an image"
            raise ValueError(f"{OPTION}: {rule}, got {next(iter(pictures))}")
        if pairs:  # else what is said of labels is said of another part, which has some
            passed_over |= no_images
            pictures = {image: pictures[image] for image in pairs}
    names = by_name(images, pictures, "an image", IMAGE_SUFFIXES)
    labels, problems, unused, said = None, (), (), said + sentences(images, passed_over)
    if labelled and files is None:
        labels, problems, unused = _of_same_names(names, default, hint=f"; {OPTION} says where label maps are")
    elif labelled:
        require_own(pairs, f"{OPTION}: {files.pattern!r}")
        labels = [label or files.expected(image, pictures[image]) for image, label in pairs.items()]
        problems = _missing(names, [*pairs.values()], labels, f"; {OPTION} is {files.pattern!r}")
        unused = _unused(files.folder, pairs) if files.folder else ()
    return made(list(names), list(pictures), labels, problems=problems, passed_over=said + unused)


def _place(
    root: Path | None, split: str, image_files: Path | None, must_pair: bool
) -> tuple[Path, Path, tuple[str, ...]]:
    """The folders of images and of label maps, if nothing else is said, and what is passed over beside them."""
    if image_files is not None:
        require_folder(image_files)
        part = image_files.parent if image_files.name == "images" else image_files
    elif (root / split).is_dir():
        part = root / split
    elif split == "train":
        part = root
    else:  # ROOT/images are to train on: never quietly the held-out part
        rule = f"must hold the split {split!r} as images/ and labels/"
        remedy = "--source-split, --target-split and --eval-split name the parts"
        raise ValueError(f"{root / split}: {rule}, got nothing there; {remedy}")
    images = part / "images"
    if must_pair:
        require_folder(images, f"; {OPTION} has to say where the label maps of pictures are that lie without images/")
    if not images.is_dir():
        return part, part / "labels", ()
    beside, _ = find_files(part, IMAGE_SUFFIXES, nested=False)
    return images, part / "labels", sentences(part, {"pictures beside images/": beside} if beside else {})


def _leave(images: Path, root: Path | None, files: LabelFiles | None, folder: Path) -> str | None:
    """Why the pictures of a sub-folder of `images` are no images, or None."""
    if what := written_here(folder):
        return what
    if folder.name == "labels" or (files and files.folder and files.folder.is_dir() and folder.samefile(files.folder)):
        return "folders of label maps"
    if images == root and folder.parent == root and folder.name in HELD_OUT:
        return "folders that are held out"
    return None


def _open_list(
    root: Path, split: str, label_files: str | None, labelled: bool, made: Callable[..., SegmentationDataset]
) -> SegmentationDataset:
    """The images of a list, in its order, which are relative to the root or to the list."""
    path = next((path for path in (root / split, Path(split)) if path.is_file()), None)
    if path is None:
        raise ValueError(f"{root / split}: must be a list of images, in {root} or here, got nothing there")
    rows, folders, problems = read_list(path), Folders(), []
    first = rows[0].image
    base = root if folders.find(root / first) or not folders.find(path.parent / first) else path.parent
    files = LabelFiles(LISTED_LABELS if label_files is None else label_files, base, base)
    images: dict[str, Path] = {}
    labels: list[Path] = []
    for row in rows:
        where = f"{path}:{row.number}"
        if Path(row.image).suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"{where}: must name an image ({' '.join(IMAGE_SUFFIXES)}), got {row.image}")
        image = folders.find(base / row.image)
        if image is None:
            problems.append(f"{where}: must name an image in {base}, got {row.image}, and nothing is there")
        images[name_of(row.image)] = image or base / row.image
        if not labelled:
            continue
        own = row.label is not None and label_files is None
        if own and Path(row.label).suffix.lower() not in LABEL_SUFFIXES:
            raise ValueError(f"{where}: must name a label map ({' '.join(LABEL_SUFFIXES)}), got {row.label}")
        expected = base / row.label if own else files.expected(base / row.image, name_of(row.image))
        label = folders.find(expected) if own else files.find(base / row.image, name_of(row.image))
        if label is None and image is not None:
            came = f"no {expected}" if expected else "none in the list"
            problems.append(f"{where}: {row.image} must have a label map, got {came}; {OPTION} says where they are")
        labels.append(label or expected or base / "labels" / f"{row.image}.png")
    if labelled:
        require_own(dict(zip(images.values(), labels, strict=True)), str(path))
    return made(list(images), list(images.values()), labels if labelled else None, problems=tuple(problems))


def _of_same_names(
    images: Mapping[str, Path], labels: Path, nested: bool = True, hint: str = ""
) -> tuple[list[Path], tuple[str, ...], tuple[str, ...]]:
    """The label map that each image has in a folder, or should have; a sentence for each that is not there; and what is
    passed over.

    Raises:
        ValueError: a missing or empty folder, two label maps of one name.
    """
    require_folder(labels, hint)
    found, passed_over = find_files(labels, LABEL_SUFFIXES, nested=nested)
    named = by_name(labels, found, "a label map", LABEL_SUFFIXES)
    files = [named.get(name) for name in images]
    expected = [file or labels / f"{name}.png" for name, file in zip(images, files, strict=True)]
    if unused := [file for name, file in named.items() if name not in images]:
        passed_over["label maps without an image"] = unused
    return expected, _missing(images, files, expected, hint), sentences(labels, passed_over)


def _missing(
    images: Mapping[str, Path], found: Sequence[Path | None], expected: Sequence[Path], hint: str
) -> tuple[str, ...]:
    suffixes = " ".join(LABEL_SUFFIXES)
    return tuple(
        f"{image}: must have a label map, got no {path} ({suffixes}){hint}"
        for image, file, path in zip(images.values(), found, expected, strict=True)
        if file is None
    )


def _unused(labels: Path, pairs: Mapping[Path, Path | None]) -> tuple[str, ...]:
    """What is passed over in a folder of label maps, in which there may be images too."""
    found, passed_over = find_files(labels, LABEL_SUFFIXES)
    passed_over["label maps without an image"] = list(found)
    known = {*places(pairs), *places(label for label in pairs.values() if label)}
    for what, files in passed_over.items():
        passed_over[what] = [file for file, place in zip(files, places(files), strict=True) if place not in known]
    return sentences(labels, {what: files for what, files in passed_over.items() if files})


def names_folder(images: Path, labels: Path, images_replaced: bool) -> Path:
    """The folder that tells the names of a set: its images, or its labels where only other images are at hand."""
    return labels if images_replaced and not images.is_dir() else images


def warn_if_incomplete(dataset: SegmentationDataset, what: str, complete: int) -> SegmentationDataset:
    """The data set as it came, after a logged warning where it has another number of images than as published."""
    if len(dataset) != complete:
        log.warning("%s: found %d images, the complete set has %d", what, len(dataset), complete)
    return dataset
