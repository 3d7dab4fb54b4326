"""Files as they come damaged or by mistake: cut, flipped, with more or less in them, of other types or kinds. Commands
end well or with one line that names the file; never with a traceback, never without end; nothing unfinished stays."""

import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from .case import Case
from .compare import leftovers
from .world import World, slug

BATCH = 25
LIMIT_SECONDS = 60.0

CHECK = ["check-data", "DATA", "--workers", "0"]
TRAIN = ["train", "TRAIN", "--steps", "1", "--out", "out"]
RESUME = ["train", "--resume", "run", "--steps", "7"]
# By the file that is changed, and what it is by its nature: the commands that read it.
TARGETS: tuple[tuple[str, str, list[list[str]]], ...] = (
    ("data/source/train/images/0.png", "binary", [CHECK, TRAIN]),
    ("data/source/train/labels/0.png", "binary", [CHECK, TRAIN]),
    ("data/target/val/labels/0.png", "binary", [CHECK, [*TRAIN, "--eval-every", "1"]]),
    ("data/target/train/images/1.jpg", "binary", [CHECK, TRAIN]),
    ("data/pictures/0.png", "binary", [["predict", "run", "data/pictures", "--out", "out"]]),
    ("data/pictures/1.jpg", "binary", [["predict", "run", "data/pictures", "--out", "out"]]),
    ("classes.yaml", "text", [["classes", "classes.yaml"], [*CHECK, "--classes", "classes.yaml"]]),
    ("config.yaml", "text", [[*TRAIN, "--config", "config.yaml"]]),
    ("ids.yaml", "text", [[*CHECK, "--source-ids", "ids.yaml"]]),
    ("ids.json", "text", [[*CHECK, "--source-ids", "ids.json"]]),
    ("list.txt", "text", [[*CHECK, "--source-split", "list.txt"], [*TRAIN, "--source-split", "list.txt"]]),
    ("list.csv", "text", [[*CHECK, "--source-split", "list.csv"]]),
    ("run/last.pt", "binary", [RESUME]),
    (
        "run/best.pt",
        "binary",
        [["evaluate", "run"], ["predict", "run", "data/pictures", "--out", "out"], ["classes", "run"]],
    ),
    ("run/metrics.jsonl", "text", [RESUME]),
    ("run/config.yaml", "text", [RESUME]),
    ("both/config.yaml", "text", [["train", "--resume", "both"]]),
    ("both/stage1/result.json", "text", [["train", "--resume", "both"]]),
    ("ablation/source-only-seed0/result.json", "text", [["ablate", "ABLATE"]]),
    ("ablation/source-only-seed0/settings.yaml", "text", [["ablate", "ABLATE"]]),
    ("ablation/source-only-seed0/metrics.jsonl", "text", [["ablate", "ABLATE"]]),
    (
        "labels/thresholds.json",
        "text",
        [[*TRAIN, "--stage", "2", "--pseudo-labels", "labels"], ["pseudo-labels", "LABELS"]],
    ),
    ("labels/0.png", "binary", [[*TRAIN, "--stage", "2", "--pseudo-labels", "labels"]]),
    ("cache", "binary", [[*CHECK, "--cache", "cache"], [*TRAIN, "--cache", "cache"]]),
    (
        "index",
        "text",
        [[*CHECK, "--cache", "cache"], [*TRAIN, "--cache", "cache"], ["prepare", "DATA", "--cache", "cache"]],
    ),
)


def cases(seed: int, world: World, case: Case) -> list[tuple[str, int, list[str]]]:
    """BATCH files one after the other."""
    found: dict[str, tuple[int, list[str]]] = {}
    for number in range(seed * BATCH, (seed + 1) * BATCH):
        row, bad = one(number, world, case)
        tried, wrong = found.get(row, (0, []))
        found[row] = tried + 1, wrong + ([f"file {number}: {bad}"] if bad else [])
    return [(row, tried, wrong) for row, (tried, wrong) in found.items()]


def one(number: int, world: World, case: Case) -> tuple[str, str | None]:
    rng = random.Random(f"mangled {number}")
    name, nature, commands = TARGETS[number % len(TARGETS)]
    shutil.rmtree(case.work)
    _lay_out(name, world, case.work)
    path = case.work / name
    if name in ("cache", "index"):
        path = rng.choice(sorted((case.work / "cache").glob("*/*.npy" if name == "cache" else "*/index.json")))
    change = rng.choice(BYTES if nature == "binary" or rng.random() < 0.3 else TEXT)
    change(path, rng)
    argv = _filled(rng.choice(commands), world)
    ended = case.run(argv, limit=LIMIT_SECONDS)
    # Of a command that lists what it finds the whole list counts; a resumed run has a name of its own.
    names = {path.name, path.stem, path.parent.name}
    trouble = ended.trouble(*names, may_be=(0, 1, 2))
    if argv[0] == "check-data" and ended.status == 1 and not ended.err:
        trouble = None if any(n in ended.out for n in names) else f"must name {path.name}, got {ended.out[-300:]!r}"
    if argv[0] == "predict" and ended.status == 1 and not ended.err:
        trouble = None if any(n in ended.out for n in names) else f"must name {path.name}, got {ended.out[-300:]!r}"
    if trouble is None and (left := [p for p in leftovers(case.work) if "console" not in p]):
        trouble = f"left behind: {left}"
    kind = f"mangled: {Path(name).suffix.lstrip('.') if '.' in name else name}"
    kind = {"mangled: png": "mangled: PNG", "mangled: jpg": "mangled: JPEG"}.get(kind, kind)
    if trouble:
        shutil.copytree(case.work, case.folder / f"file-{number}", dirs_exist_ok=True)
        trouble = f"{change.__name__.strip('_')} in {name}, simfast {argv[0]}: {trouble}"
    return kind, trouble


def _lay_out(name: str, world: World, work: Path) -> None:
    kept = world.folder / "kept"
    shutil.copytree(world.data, work / "data")
    if name.endswith(".jpg"):
        png = (work / name).with_suffix(".png")
        with Image.open(png) as picture:
            picture.save(work / name, quality=95)
        png.unlink()
    wants = {
        "run": ("train", "run"),
        "both": ("train---stage-all", "run"),
        "ablation": ("ablate", "ablation"),
        "labels": ("pseudo-labels", "labels"),
        "cache": ("prepare", "cache"),
        "index": ("prepare", "cache"),
        "data": ("train", "run"),
    }
    first = Path(name).parts[0]
    if first in wants:
        program, folder = wants[first]
        to = {"both": "both", "index": "cache"}.get(first, folder)
        shutil.copytree(kept / slug(program) / folder, work / to, dirs_exist_ok=True)
    from simfast.config.classes import classes_of

    (work / "classes.yaml").write_text(classes_of("cityscapes").text())
    (work / "config.yaml").write_text(
        "lr: 0.001\nstep:\n  momentum: 0.9\nbetas: [0.9, 0.99]\nhead_dilations: [6, 12]\n"
    )
    (work / "ids.yaml").write_text("0: road\n2: 2\n10: 10\n11: person\n13: car\n255: 255\n")
    (work / "ids.json").write_text('{"0": "road", "2": 2, "10": 10, "11": "person", "13": "car", "255": 255}\n')
    (work / "list.txt").write_text("".join(f"images/{i}.png labels/{i}.png\n" for i in range(4)))
    (work / "list.csv").write_text("image,label\n" + "".join(f"images/{i}.png,labels/{i}.png\n" for i in range(4)))


def _filled(argv: list[str], world: World) -> list[str]:
    here = {str(world.data / part): f"data/{part}" for part in ("source", "target")}
    common = [here.get(one, one) for one in world.common]
    program, labels = world.programs["ablate"].argv, world.programs["pseudo-labels"].argv
    filled = {
        "DATA": [here.get(one, one) for one in world.parts],
        "TRAIN": [*common, "--workers", "0"],
        "ABLATE": [one.replace("aa+sim+ssl", "source-only") for one in program[1:]],
        "LABELS": labels[1:],
    }
    return [part for one in argv for part in filled.get(one, [one])]


# ----------------------------------------------------------------------------------------------------------------------
# What happens to bytes
# ----------------------------------------------------------------------------------------------------------------------


def _cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.choice((0, 1, rng.randrange(len(data) + 1), max(0, len(data) - 1)))])


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    near = min(len(data), 64) if rng.random() < 0.5 else len(data)
    for _ in range(rng.choice((1, 1, 2, 20))):
        data[rng.randrange(near)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _insert(path: Path, rng: random.Random) -> None:
    data, place = path.read_bytes(), 0
    place = rng.randrange(len(data) + 1)
    path.write_bytes(data[:place] + rng.randbytes(rng.choice((1, 4, 100))) + data[place:])


def _lose(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    place = rng.randrange(len(data) + 1)
    path.write_bytes(data[:place] + data[place + rng.choice((1, 4, 100)) :])


def _zero(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data) + 1)
    end = min(len(data), place + rng.choice((8, 512, len(data))))
    data[place:end] = bytes(end - place)
    path.write_bytes(data)


def _another_kind(path: Path, rng: random.Random) -> None:
    path.unlink()
    kind = rng.randrange(8)
    if kind == 0:
        Image.fromarray(np.zeros((3, 5, 4), np.uint8)).save(path, "PNG")
    elif kind == 1:
        path.write_bytes(b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n")
    elif kind == 2:
        path.write_bytes(rng.randbytes(1000))
    elif kind == 3:
        np.save(path.open("wb"), np.zeros((2, 3)))
    elif kind == 4:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "nothing of torch's")
    elif kind == 5:
        path.mkdir()
    elif kind == 6:
        path.symlink_to(path.name)  # a loop
    else:
        path.write_bytes(b"\x1f\x8b\x08\x00" + rng.randbytes(60))


BYTES: tuple[Callable[[Path, random.Random], None], ...] = (_cut, _flip, _flip, _insert, _lose, _zero, _another_kind)


# ----------------------------------------------------------------------------------------------------------------------
# What happens to text
# ----------------------------------------------------------------------------------------------------------------------

ODD = (
    *("null", "[]", "{}", "-1", "1e400", ".nan", "18446744073709551616", '"x"', "true", "[[1]]", "0.5", "''", "*a"),
    *("!!python/object/apply:os.system ['true']", "\x00", "\xe9\xff", "2026-11-27", "&a [*a]", "- - - -", "? :", "NaN"),
)


def _odd_value(path: Path, rng: random.Random) -> None:
    """A word of it is another one, perhaps of another type."""
    text = path.read_text()
    words = text.replace(",", " , ").replace(":", " : ").split(" ")
    place = rng.randrange(len(words))
    words[place] = rng.choice(ODD)
    path.write_text(" ".join(words))


def _odd_json(path: Path, rng: random.Random) -> None:
    """A value, a key or an entry of JSON is another one; of what is no JSON, a word."""
    lines = path.read_text().splitlines()
    try:
        rows = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else [json.loads(path.read_text())]
    except ValueError:
        return _odd_value(path, rng)
    number = rng.randrange(len(rows))
    rows[number] = _altered(rows[number], rng)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _altered(value, rng: random.Random):
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        if rng.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: _altered(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], _altered(value[place], rng), *value[place + 1 :]]
    return rng.choice((None, [], {}, -1, 2**70, 0.5, "x", "../../x", "/etc/passwd", True, [[1]], {"a": 1}, 1e308, 0))


def _lines(path: Path, rng: random.Random) -> None:
    """Lines twice, in another order, or fewer."""
    lines = path.read_text().splitlines(keepends=True)
    kind, place = rng.randrange(4), rng.randrange(len(lines))
    if kind == 0:
        lines.insert(place, lines[place])
    elif kind == 1:
        rng.shuffle(lines)
    elif kind == 2:
        del lines[place:]
    else:
        del lines[place]
    path.write_text("".join(lines))


def _encoding(path: Path, rng: random.Random) -> None:
    """As other editors save it, or with letters that are none."""
    text = path.read_text()
    encoded = (
        text.encode("utf-16"),
        text.encode("utf-8-sig"),
        text.replace("\n", "\r").encode(),
        b"\xe9\n" + text.encode(),
    )
    path.write_bytes(rng.choice(encoded))


def _deep(path: Path, rng: random.Random) -> None:
    depth = rng.choice((100, 20_000))
    path.write_text(rng.choice(("[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth)))


TEXT: tuple[Callable[[Path, random.Random], None], ...] = (
    *(_odd_value, _odd_value, _odd_json, _odd_json, _odd_json, _lines, _encoding, _deep),
)
