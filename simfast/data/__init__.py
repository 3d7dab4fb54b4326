"""Data sets by name: `open_dataset`."""

from pathlib import Path

from simfast.data.camvid import open_camvid
from simfast.data.folder import SegmentationFolder, read_ids
from simfast.data.streets import open_streets


def open_dataset(
    name: str,
    root: Path | None,
    split: str,
    size: tuple[int, int],
    *,
    labelled: bool = True,
    resize_labels: bool = True,
    ids: Path | None = None,
) -> SegmentationFolder:
    """A part of a data set.

    Args:
        name: "streets" (embedded; splits source, train, test), "camvid" (ROOT/{train,val,test}/{images,labels}), or
            "folder" (ROOT/SPLIT/{images,labels}; for the split "train" also ROOT/{images,labels}).
        root: the data set's folder; None for streets.
        split: which part.
        size: width and height of images, pixels.
        labelled: False leaves the labels unread.
        resize_labels: False keeps labels at the size of their files, to be scored at.
        ids: for "folder", a YAML or JSON file {raw id: train id}; None: labels hold train ids.

    Raises:
        ValueError: arguments that do not go together, or what is wrong with the data; names the argument or the file.
    """
    if name != "folder" and ids is not None:
        raise ValueError(f"ids: {name} has its own id map and takes none, got {ids}")
    if name == "streets":
        if root is not None:
            raise ValueError(f"root: streets is embedded and takes none, got {root}")
        return open_streets(split, size, labelled=labelled, resize_labels=resize_labels)
    if name not in ("camvid", "folder"):
        raise ValueError(f"name: must be streets, camvid or folder, got {name!r}")
    if root is None:
        raise ValueError(f"root: {name} needs the folder that it is in, got none")
    if not Path(root).is_dir():
        raise ValueError(f"{root}: must be the folder of {name}, got nothing there")
    if name == "camvid":
        return open_camvid(Path(root), split, size, labelled=labelled, resize_labels=resize_labels)
    part = Path(root) / split
    if not part.is_dir():
        if split != "train":  # ROOT/images are to train on: never quietly the held-out part
            raise ValueError(f"{part}: must hold the split {split!r} as images/ and labels/, got nothing there")
        part = Path(root)
    return SegmentationFolder(
        part / "images", part / "labels" if labelled else None, size, read_ids(ids) if ids else None, resize_labels
    )
