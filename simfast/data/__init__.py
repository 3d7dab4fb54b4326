"""Data sets by name: `open_dataset`."""

import hashlib
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from simfast.config.classes import CITYSCAPES, Classes
from simfast.data.cache import CachedDataset, open_cached
from simfast.data.camvid import open_camvid
from simfast.data.cityscapes import open_cityscapes
from simfast.data.classes import PUBLISHED, coding_of, read_ids
from simfast.data.dataset import Description, SegmentationDataset, require_complete
from simfast.data.folder import open_folder
from simfast.data.gta5 import open_gta5
from simfast.data.labels import LabelCoding, beside_own_list
from simfast.data.streets import open_streets
from simfast.data.synthia import open_synthia

log = logging.getLogger("simfast")

NAMES = ("streets", "camvid", "folder", "gta5", "synthia", "cityscapes")


def open_dataset(
    name: str,
    root: Path | None,
    split: str,
    size: tuple[int, int],
    *,
    classes: Classes = CITYSCAPES,
    labelled: bool = True,
    resize_labels: bool = True,
    ids: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    image_files: Path | None = None,
    label_files: str | None = None,
    cache: Path | None = None,
    complete: bool = True,
) -> SegmentationDataset | CachedDataset:
    """A part of a data set.

    A "folder" is ROOT/SPLIT/{images,labels}, for the split "train" also ROOT/{images,labels}. Where there is no folder
    `images`, its pictures lie in ROOT/SPLIT or ROOT itself, and have labels only if label_files says where. Sub-folders
    belong to it: the name of an item is the path of its image, without suffix. A split that ends in .txt, .lst or .csv
    is a list in ROOT or the working folder, with lines "image" or "image label", relative to ROOT or to the list, in
    double quotes where a path has spaces.

    Its label_files are one of three. A folder in ROOT/SPLIT, ROOT or the working folder, with the images' names. A
    pattern as "{dir}/{stem}_L.png", relative to ROOT, with the image's own {dir} and {stem}, its {name} and that one's
    {parent}, and {root}. Rules "A -> B", with commas between, that one after the other replace text in the image's path
    under ROOT. Where no file has the very name, one with another suffix will do. Images and labels may lie in one
    folder: the label map of another image is no image, nor is a picture to which no rule applies.

    Args:
        name: "streets" (embedded; splits source, train, test), "camvid" (ROOT/{train,val,test}/{images,labels}),
            "gta5" (ROOT/{images,labels}; split train), "synthia" (ROOT/RGB and ROOT/GT/LABELS or decoded labels; split
            train), "cityscapes" (ROOT/{leftImg8bit,gtFine}/{train,val,test}), or "folder" (see below).
        root: the data set's folder; None for streets. With a cache, it need not be there.
        split: which part.
        size: width and height of images, pixels.
        classes: what the train ids are, and what label files hold; see `simfast.data.classes.coding_of`.
        labelled: False leaves the labels unread.
        resize_labels: False keeps labels at the size of their files, to be scored at.
        ids: a YAML or JSON file {id in label files: class}, to go by instead; not for a published set read by a
            built-in class list, which has a table of its own.
        images: folder of images to take instead of the set's own, under the same names (transferred source images).
        labels: folder of 8-bit label maps of train ids to take instead, under the images' names (pseudo labels).
        image_files: for "folder", a folder of images in place of a root and a split.
        label_files: for "folder", where the label maps are (see below); without it, in `labels` beside `images`.
        cache: folder that `simfast.data.prepare.prepare` wrote this part into; what comes out is the same. Replaced
            labels are read from their files all the same.
        complete: False lets images without a label map, or names without a replacement, pass as `problems`.

    Raises:
        ValueError: arguments that do not go together, or what is wrong with the data or the cache; names the argument
            or the file.
    """
    if name not in NAMES:
        raise ValueError(f"name: must be one of {', '.join(NAMES)}, got {name!r}")
    if name in PUBLISHED and classes.built_in and ids is not None:
        rule = f"{name} has its own id map and takes none with the class list {classes}"
        raise ValueError(f"ids: {rule}, got {ids}; give it{beside_own_list(classes)}")
    if name != "folder" and (image_files, label_files) != (None, None):
        given = f"{image_files or label_files}"
        raise ValueError(f"label_files: {name} has its own places for images and labels and takes none, got {given}")
    if name == "streets" and root is not None:
        raise ValueError(f"root: streets is embedded and takes none, got {root}")
    if labels is not None and not labelled:
        raise ValueError(f"labels: must not be given where labels are not to be read, got {labels}")
    if image_files is not None and root is not None:
        raise ValueError(f"image_files: stands for root and split, got {image_files} and {root}")
    paths = (root, images, labels, image_files, cache)
    root, images, labels, image_files, cache = (path if path is None else Path(path) for path in paths)
    options = {"labelled": labelled, "resize_labels": resize_labels, "ids": ids, "images": images, "labels": labels}
    options |= {"label_files": label_files, "image_files": image_files}
    description = describe(name, root, split, size, classes=classes, **options)
    coding = coding_of(name, classes, None if description.ids is None else dict(description.ids))
    if root is None and image_files is None and (name == "folder" or (name != "streets" and cache is None)):
        raise ValueError(f"root: {name} needs the folder that it is in (--source-root, --target-root), got none")
    own = image_files or root
    there = (name == "streets" or (own is not None and own.is_dir())) and (images is None or images.is_dir())
    dataset = None
    if cache is not None and not there and own is not None:
        log.warning("%s: not all there, so %s %s is read from %s alone", images or own, name, split, cache)
    if there or cache is None:
        folder = {"split": split, "label_files": label_files, "image_files": image_files}
        dataset = _open_files(description, root, images, resize_labels, coding, folder)
        if complete:
            require_complete(dataset)
    if cache is not None:
        dataset = open_cached(cache, description, dataset, coding)
    if labels is not None:
        dataset = dataset.with_labels(labels, resize_labels)
    return require_complete(dataset) if complete else dataset


def describe(
    name: str,
    root: Path | None,
    split: str,
    size: tuple[int, int],
    *,
    classes: Classes = CITYSCAPES,
    labelled: bool = True,
    resize_labels: bool = True,
    ids: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    label_files: str | None = None,
    image_files: Path | None = None,
) -> Description:
    """Which data `open_dataset` opens by these arguments, of which it reads `ids` alone.

    Raises:
        ValueError: an id map that cannot be read; names it.
    """
    own_labels = labelled and labels is None
    return Description(
        name,
        "" if image_files else _portable(split),
        tuple(size),
        own_labels,
        resize_labels or not own_labels,
        folder=_last_name(root) if name == "folder" and root else None,
        images=_last_name(images) if images else None,
        ids=None if ids is None else tuple(sorted(read_ids(ids, classes).items())),
        classes=None if classes == CITYSCAPES or not own_labels else _in_words(classes),
        label_files=None if label_files is None else _portable(label_files),
        image_files="/".join(Path(os.path.abspath(image_files)).parts[-2:]) if image_files else None,
    )


def _open_files(
    description: Description,
    root: Path | None,
    images: Path | None,
    resize_labels: bool,
    coding: LabelCoding,
    folder: dict[str, Any],
) -> SegmentationDataset:
    name, split, size = description.data_set, description.split, description.size
    options = {"labelled": description.labelled, "resize_labels": resize_labels}
    replaced = {"images_replaced": images is not None}
    if root is not None and not root.is_dir():
        raise ValueError(f"{root}: must be the folder of data set {name!r}, got nothing there")
    if name == "streets":
        dataset = open_streets(split, size, coding, **options)
    elif name == "camvid":
        dataset = open_camvid(root, split, size, coding, **options)
    elif name == "cityscapes":
        dataset = open_cityscapes(root, split, size, coding, **options)
    elif name == "gta5":
        dataset = open_gta5(root, split, size, coding, **options, **replaced)
    elif name == "synthia":
        dataset = open_synthia(root, split, size, coding, **options, **replaced)
    else:
        dataset = open_folder(root, size=size, coding=coding, **folder, **options)
    dataset = replace(dataset, description=description)
    return dataset if images is None else dataset.with_images(images)


def _in_words(classes: Classes) -> str:
    """Changes with all that the list says."""
    digest = hashlib.blake2b(json.dumps(classes.stored()).encode(), digest_size=4)
    return f"{classes.title} {digest.hexdigest()}"


def _portable(given: str) -> str:
    """What may be a path, without what is another one on another machine."""
    return Path(given).name if Path(given).is_absolute() else given


def _last_name(path: Path) -> str:
    return Path(os.path.abspath(path)).name
