"""What several tests of whole runs share."""

import numpy as np
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """A report goes from one process to another as UTF-8, which not every name is that a test logs."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A source and a target folder of blocky pictures whose colour tells the class."""
    from PIL import Image  # here: tests of the ops need none

    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    classes = np.array([0, 2, 10, 11, 13, 255], np.uint8)
    for domain, split, count in (("source", "train", 5), ("target", "train", 4), ("target", "val", 2)):
        for kind in ("images", "labels"):
            (root / domain / split / kind).mkdir(parents=True)
        for i in range(count):
            label = np.kron(rng.choice(classes, (8, 8)), np.ones((8, 8), np.uint8))
            image = np.stack([label * 13, 255 - label, label * 7], -1) // (1 if domain == "source" else 2)
            Image.fromarray(label).save(root / domain / split / "labels" / f"{i}.png")
            Image.fromarray(image.astype(np.uint8)).save(root / domain / split / "images" / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def settings(folders):
    """Command line of a run of seconds on them."""
    return [
        *("--preset", "gta5", "--arch", "resnet18", "--source", "folder", "--target", "folder"),
        *("--device", "cpu", "--workers", "0", "--flip"),
        *("--source-root", str(folders / "source"), "--target-root", str(folders / "target")),
        *("--source-size", "64", "64", "--target-size", "64", "64", "--schedule-steps", "20", "--lr", "0.001"),
        *("--log-every", "1", "--eval-every", "2", "--panel-images", "1"),
    ]
