"""The command `simfast`, from its command line: each command on a run of seconds."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
import yaml
from PIL import Image
from running import data_of, train

from simfast import __version__
from simfast.cli import main
from simfast.cli.commands import COMMANDS
from simfast.cli.parse import parse
from simfast.config import Config
from simfast.config.classes import classes_of
from simfast.models import checkpoint, deeplab_v2


@pytest.fixture(autouse=True)
def restore_global_state():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """The folder of a finished run, and its result."""
    out = tmp_path_factory.mktemp("run")
    return out, train([*settings, "--out", str(out), "--steps", "2"])


def simfast(*arguments):
    """The exit code of `simfast ARGUMENTS`, or its message."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def explained(capsys, *arguments):
    """The options in the help of a command line."""
    assert simfast(*arguments, "--help") == 0
    return set(re.findall(r"(--[a-z0-9][a-z0-9-]*)", capsys.readouterr().out))


def test_help_names_every_command(capsys):
    assert simfast("--help") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)
    assert simfast("trian") == 2
    assert "trian" in capsys.readouterr().err
    assert simfast("--version") == 0
    assert capsys.readouterr().out == f"simfast {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_what_it_reads(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    options = explained(capsys, name)
    own = {field.name for field in dataclasses.fields(COMMANDS[name])} - {
        "config",
        "checkpoint",
        "inputs",
        "name",
        "file",
    }
    wanted = {"--" + setting.replace("_", "-") for setting in own | {*COMMANDS[name].READS}}
    assert wanted <= options
    hidden = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(Config)} - wanted
    defaults = {"--no-flip", "--no-deterministic"}
    mentioned = {"--stage1", "--method", "--transfer", "--resume", "--preset", "--config", "--pseudo-labels", "--steps"}
    mentioned |= {"--classes"}
    assert not (options & hidden) - defaults - mentioned, "a setting that the command does not read"


def test_help_shows_what_preset_and_checkpoint_make_the_defaults(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for arguments, text in [
        (["train", "--preset", "synthia"], "(default: 1280 760)"),
        (["predict", run[0]], "(default: 64 64)"),
    ]:
        assert simfast(*arguments, "--help") == 0
        assert text in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_terminal(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert simfast(*name.split(), "--help") == 0
    _, *lines = capsys.readouterr().out.splitlines()  # tyro's usage is one line, whatever its length
    assert [line for line in lines if len(line) > 80] == []
    of_one = ("evaluate", "predict", "pseudo-labels", "weights", "diagnose")
    assert any("CHECKPOINT" in line for line in lines) == (name in of_one)


def test_diagnose_refuses_what_only_a_step_reads(capsys):
    for name in ("--lambda-d", "--lambda-mix", "--confidence", "--teacher-decay", "--lr"):
        assert simfast("diagnose", "run", name, "0.5") == 2
        assert name in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from simfast.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "pydantic", "matplotlib", "PIL", "tensorboard"}
    assert not heavy & set(done.stderr.split())
    assert "pseudo-labels" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command_and_its_options(shell, capsys):
    assert not simfast("--tyro-print-completion", shell)
    script = capsys.readouterr().out
    assert all(name in script for name in [*COMMANDS, "--lambda-adv", "--label-ids"])


@pytest.mark.parametrize("missing", ["tyro", "pydantic", "cv2", "tabulate"])
def test_without_its_packages_the_command_says_what_to_install(missing, tmp_path):
    # In a program of its own: what has been imported here is what other tests hold.
    program = f"import sys; sys.modules[{missing!r}] = None; from simfast.cli import main; main()"
    argv = ["train", "--out", str(tmp_path / "run"), "--steps", "1", "--workers", "0"]
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True)
    remedy = f"pip install 'simfast[train]' (got no {missing})"
    assert (done.returncode, done.stderr) == (1, f"simfast: needs its training packages: {remedy}\n")


def test_an_interrupt_that_a_library_takes_for_something_else_is_one(monkeypatch, capsys):
    def torn(*_):
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("a lock that is not there yet")

    monkeypatch.setattr("simfast.training.run.run", torn)
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""


def test_what_the_terminal_s_encoding_lacks_is_said_with_escapes_and_a_class_list_is_utf_8(tmp_path):
    (tmp_path / "b\udce4d.png").write_text("no picture")  # as Python reads the byte 0xe4

    def said(*argv):
        program = [sys.executable, "-m", "simfast", *argv]
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        return subprocess.run(program, env=environment, capture_output=True, check=False).stdout

    checked = said("check-data", "--preset", "streets", "--target", "folder", "--target-root", str(tmp_path))
    assert rb"b\udce4d.png: must be a readable picture" in checked
    names = [
        {"name": "Straße", "colour": [1, 2, 3], "kind": "stuff"},
        {"name": "car", "colour": [4, 5, 6], "kind": "thing"},
    ]
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump({"classes": names}))
    assert "Straße" in said("classes", str(tmp_path / "classes.yaml")).decode()


class Spy(Config):
    """Settings that remember which of them are read."""

    read: ClassVar[set[str]] = set()

    def __getattribute__(self, name):
        Spy.read.add(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("name", ["evaluate", "predict", "pseudo-labels", "prepare", "check-data"])
def test_a_command_reads_the_settings_that_it_explains(name, run, settings, folders, tmp_path, monkeypatch):
    Image.new("RGB", (50, 40)).save(tmp_path / "photo.png")
    arguments = {
        "evaluate": [run[0]],
        "predict": [run[0], tmp_path / "photo.png", "--out", tmp_path / "out"],
        "pseudo-labels": [run[0], "--out", tmp_path / "labels"],
        "prepare": [*data_of(settings), "--cache", tmp_path / "cache", "--report-split", "val"],
        "check-data": [*data_of(settings), "--report-split", "val"],
    }[name]
    command = parse([name, *map(str, arguments)], COMMANDS)
    spied = Spy(**{field.name: getattr(command.config, field.name) for field in dataclasses.fields(Config)})
    Spy.read.clear()
    assert dataclasses.replace(command, config=spied).run() == 0
    read = Spy.read & {field.name for field in dataclasses.fields(Config)}
    # What was trained is told by the checkpoint.
    assert read | {"method"} == {*command.READS, "method"} - {"preset", "config", "recipe"}


def test_evaluate_scores_a_run_as_it_scored_itself(run, tmp_path, capsys):
    out, result = run
    path = tmp_path / "new" / "scores.json"
    assert simfast("evaluate", out, "--report", path) == 0
    report = json.loads(path.read_text())
    best = result["best"]
    assert {key: report["scores"][key] for key in best if key.startswith("iou/")} == {
        key: value for key, value in best.items() if key.startswith("iou/")
    }
    assert report["scores"]["miou/13"] == best["miou/13"]
    assert (report["images"], report["tensors"]["matched"]) == (2, report["tensors"]["total"])
    assert "mIoU" in capsys.readouterr().out


def test_evaluate_takes_a_released_file(folders, tmp_path, capsys):
    torch.manual_seed(0)
    model = deeplab_v2("resnet18", 19, head_dilations=(6, 12, 18, 24))
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "sim.pth")
    arguments = ["--target", "folder", "--target-root", folders / "target", "--target-size", "64", "64"]
    arguments += ["--workers", 0, "--device", "cpu"]
    unsaid = simfast("evaluate", tmp_path / "sim.pth", *arguments)  # all four branches are as initialised
    assert f"head_dilations: must be given (--head-dilations) for {tmp_path / 'sim.pth'}" in unsaid
    assert simfast("evaluate", tmp_path / "sim.pth", *arguments, "--head-dilations", 6, 12) == 0
    said = capsys.readouterr().out
    assert "bgr" in said
    assert "104 of 104 tensors of the network set, by 104 of 108 of the file" in said
    exported = tmp_path / "sim.safetensors"
    assert simfast("weights", tmp_path / "sim.pth", exported, "--head-dilations", 6, 12) == 0
    assert simfast("evaluate", exported, *arguments) == 0
    assert "104 of 104 tensors of the network set, by 104 of 104 of the file" in capsys.readouterr().out


def test_what_head_a_file_of_others_has_is_no_presets_to_say(folders, tmp_path, capsys):
    model = deeplab_v2("vgg16", 19, head_dilations=(6, 12, 18, 24))
    torch.save(model.state_dict(), tmp_path / "sim.pth")
    arguments = ["--preset", "gta5", "--target", "folder", "--target-root", folders / "target", "--workers", 0]
    arguments += ["--target-size", "64", "64"]
    assert "head_dilations: must be given" in simfast("evaluate", tmp_path / "sim.pth", *arguments)
    assert simfast("evaluate", tmp_path / "sim.pth", *arguments, "--head-dilations", 6, 12) == 0
    assert "4 of 4 of the head" in capsys.readouterr().out


def test_predict_writes_labels_colours_and_overlays_of_any_size(run, tmp_path):
    out, _ = run
    (tmp_path / "in").mkdir()
    for i, size in enumerate([(50, 90), (130, 40)]):
        Image.new("RGB", size, (90, 80, 70)).save(tmp_path / "in" / f"{i}.jpg")
    assert simfast("predict", out, tmp_path / "in", "--out", tmp_path / "out") == 0
    for kind in ("labels", "colour", "overlay"):
        sizes = [Image.open(tmp_path / "out" / kind / f"{i}.png").size for i in range(2)]
        assert sizes == [(50, 90), (130, 40)]
    (tmp_path / "in" / "bad.jpg").write_bytes(b"not a picture")
    assert simfast("predict", out / "last.pt", tmp_path / "in", "--out", tmp_path / "out") == 1


def test_pseudo_labels_from_any_checkpoint(run, tmp_path):
    out, _ = run
    assert simfast("pseudo-labels", out / "last.pt", "--out", tmp_path / "labels") == 0
    assert len(list((tmp_path / "labels").glob("*.png"))) == 4
    classes = json.loads((tmp_path / "labels" / "thresholds.json").read_text())["classes"]
    assert all(entry["threshold"] is None or entry["threshold"] <= 0.9 for entry in classes.values())


def test_training_from_a_cache_gives_the_same_bits(settings, run, tmp_path):
    assert simfast("prepare", *data_of(settings), "--cache", tmp_path / "cache") == 0
    train([*settings, "--out", str(tmp_path / "run"), "--steps", "2", "--cache", str(tmp_path / "cache")])
    first, second = (checkpoint.load(path / "last.pt") for path in (run[0], tmp_path / "run"))
    assert all(torch.equal(first["model"][name], tensor) for name, tensor in second["model"].items())
    assert first["last"] == second["last"]


def test_errors_are_one_line_that_names_the_command(settings, tmp_path):
    message = simfast("prepare", *data_of(settings))
    assert message == "simfast prepare: cache: must name the folder to fill, got none"
    assert "nowhere" in simfast("evaluate", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "CPU"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "GPU"),
    ],
)
def test_where_memory_is_short_it_is_said_and_what_helps(error, where, run, tmp_path, monkeypatch):
    def short(*_):
        raise error

    monkeypatch.setattr("simfast.inference.predict.normalise", short)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match=rf"simfast predict: out of memory on the {where} \(.*--input-size.*") as ended:
        main(["predict", str(run[0]), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")])
    assert ("--device cpu" in str(ended.value)) == (where == "GPU")


def test_a_bad_value_is_told_once(capsys):
    assert simfast("train", "--steps", "many") == 2
    assert capsys.readouterr().err.count("Error parsing --steps") == 1


def test_a_checkpoint_is_found_behind_the_options_too(run, capsys):
    # Its settings are the starting point.
    assert parse(["evaluate", "--workers", "3", str(run[0])], COMMANDS).config.arch == "resnet18"


def test_classes_of_what_is_no_run_says_so(tmp_path):
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    for path, came in ((tmp_path, f"no {tmp_path / 'best.pt'}"), (tmp_path / "other.pth", "weights without settings")):
        message = f"simfast classes: classes: {path} must be a run folder or one of its checkpoints"
        assert simfast("classes", path) == f"{message}, which keep the class list, got {came}"


def test_classes_of_a_runs_settings_are_those_of_the_run(run, capsys):
    said = []
    for path in (run[0] / "config.yaml", run[0]):
        assert simfast("classes", path) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "name: road" in said[0]


def test_predict_asks_for_pictures(run, tmp_path):
    message = "simfast predict: inputs: must name a picture or a folder of pictures, got none"
    assert simfast("predict", run[0], "--out", tmp_path / "out") == message


def test_classes_given_with_a_checkpoint_may_be_repainted_but_not_others(run, settings, tmp_path):
    lines = classes_of("cityscapes").text().replace("[128, 64, 128]", "[1, 2, 3]").splitlines()
    repainted, fewer = tmp_path / "repainted.yaml", tmp_path / "fewer.yaml"
    repainted.write_text("\n".join(lines))
    fewer.write_text(
        "classes: [{name: soil, colour: [1, 2, 3], kind: stuff}, {name: weed, colour: [4, 5, 6], kind: thing}]"
    )
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    arguments = [tmp_path / "photo.png", "--out", tmp_path / "out", "--classes"]
    assert simfast("predict", run[0], *arguments, repainted) == 0
    assert classes_of(tmp_path / "out" / "classes.yaml").entries[0].colour == (1, 2, 3)
    said = rf"must name the 19 classes of {run[0]}/\w+\.pt in their order \(road, sidewalk, .*\), got the 2 of fewer "
    for command in (["predict", run[0], *arguments, fewer], ["diagnose", run[0], "--classes", fewer]):
        assert re.search(said, simfast(*command))
    stage2 = ["--stage", "2", "--stage1", str(run[0]), "--classes", str(fewer), "--out", str(tmp_path / "second")]
    assert re.search(said, simfast("train", *settings, "--steps", "2", *stage2))
