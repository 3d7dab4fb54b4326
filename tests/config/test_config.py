"""Settings: the command line, YAML files, presets and what a resumed run keeps."""

import dataclasses
import re
import typing

import pytest
import yaml
from running import save_run, settings_of

from simfast.config import COMMAND_LINE_ONLY, Config
from simfast.config.config import OF_EACH_SOURCE
from simfast.config.presets import PRESETS, RECIPES
from simfast.models import checkpoint

# One other value for every setting; a new setting without one here is a failure.
OTHER = {
    "stage": "all",
    "method": "aa",
    "preset": "gta5",
    "recipe": "released",
    "config": None,
    "out": "x",
    "resume": None,
    "device": "cpu",
    "seed": "7",
    "skip_bad_files": "3",
    "source": "camvid",
    "source_root": "x",
    "source_split": "val",
    "source_ids": "x.yaml",
    "source_labels": "x",
    "source_share": "3",
    "classes": "camvid",
    "source_images": "x",
    "transfer": "lab",
    "fda_beta": "0.2",
    "source_size": "64 32",
    "target": "camvid",
    "target_root": "x",
    "target_split": "val",
    "target_ids": "x.yaml",
    "target_labels": "x",
    "eval_images": "x",
    "eval_labels": "x",
    "target_size": "64 32",
    "eval_split": "train",
    "report_split": "x",
    "score_classes": "16",
    "cache": "x",
    "flip": "--no-flip",
    "workers": "3",
    "arch": "vgg16",
    "weights": "x.pth",
    "convention": "bgr",
    "ema": "--ema",
    "head_dilations": "6 12",
    "resnet_style": "torchvision",
    "batch_norm": "frozen",
    "lambda_seg": "2",
    "lambda_adv": "2",
    "lambda_ci": "2",
    "lambda_ci_stage2": "2",
    "lambda_d": "2",
    "adversary": "ls-gan",
    "stuff_rows": "7",
    "max_instances": "7",
    "gate": "released",
    "fill_rule": "full",
    "bank_dtype": "bfloat16",
    "match_pseudo_labels": "--no-match-pseudo-labels",
    "ops": "fused",
    "self_training": "online",
    "lambda_mix": "2",
    "teacher_decay": "0.5",
    "confidence": "0.5",
    "stage1": "x",
    "pseudo_labels": "x",
    "pseudo_cap": "0.5",
    "pseudo_softmax": "features",
    "step_mode": "compile+graph",
    "precision": "bf16",
    "fuse": "norms head",
    "memory": "low",
    "engines": "measured",
    "batch_size": "7",
    "steps": "7",
    "schedule_steps": "12345",
    "lr": "2",
    "lr_d": "2",
    "head_lr_factor": "2",
    "backbone_updates": "listed",
    "power": "2",
    "momentum": "0.5",
    "nesterov": "--no-nesterov",
    "weight_decay": "2",
    "betas": "0.1 0.2",
    "log_every": "7",
    "eval_every": "7",
    "panel_images": "7",
    "deterministic": "--no-deterministic",
}
# The rest of what a run saves to go on from.
FIELDS = [field.name for field in dataclasses.fields(Config)]


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_reachable_from_the_command_line(name, tmp_path):
    value, option = OTHER[name], "--" + name.replace("_", "-")
    before = settings_of([])
    if name == "config":
        value = str(tmp_path / "settings.yaml")
        (tmp_path / "settings.yaml").write_text("seed: 3")
    elif name == "resume":
        value = str(tmp_path / "last.pt")
        save_run(tmp_path / "last.pt", before)
    beside = {"eval_images": ["--eval-labels", "y"], "eval_labels": ["--eval-images", "y"]}.get(name, [])
    after = settings_of([value] if value.startswith("--") else [option, *value.split(), *beside])
    changed = [other for other in FIELDS if getattr(before, other) != getattr(after, other)]
    assert name in changed
    value_now = getattr(after, name)
    value_now = value_now[0] if name in OF_EACH_SOURCE else value_now
    shown = " ".join(map(str, value_now)) if isinstance(value_now, tuple) else str(value_now)
    assert shown in (value, f"{value}.0", "False", "True")


def test_help_explains_every_setting(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # on a wide terminal it is set in two columns
    with pytest.raises(SystemExit, match="0"):
        settings_of(["--help"])
    entries = re.split(r"\n[ │|]*--(?=\w)", capsys.readouterr().out)[1:]
    explained = {
        entry.split()[0].rstrip(",")
        for entry in entries
        if re.search(r"\w+ \w+.*\((default|repeatable)", entry, re.DOTALL)
    }
    assert explained == {name.replace("_", "-") for name in FIELDS}


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("preset: gta5\nlr: 0.5\nseed: 4\nsource-size: [96, 64]\n")
    config = settings_of(["--config", str(file), "--seed", "5"])
    assert (config.arch, config.lr, config.seed, config.source_size) == ("resnet101", 0.5, 5, (96, 64))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_stored_recipe_is_a_settings_file(preset, tmp_path):
    config = settings_of(["--preset", preset])
    file = tmp_path / "config.yaml"
    for settings in (config.portable(), config.to_dict()):  # in groups, and flat as older runs have it
        stored = {key: value for key, value in settings.items() if key not in COMMAND_LINE_ONLY}
        file.write_text(yaml.safe_dump(stored))
        assert dataclasses.replace(settings_of(["--config", str(file)]), config=None) == config
    assert Config.from_dict(config.to_dict(), "itself") == config


def test_the_released_recipe_sets_what_differs_from_the_paper(tmp_path):
    paper, released = settings_of(["--preset", "gta5"]), settings_of(["--preset", "gta5", "--recipe", "released"])
    differs = {name: getattr(released, name) for name in FIELDS if getattr(released, name) != getattr(paper, name)}
    assert differs == {
        "recipe": "released",
        "head_dilations": (6, 12),
        "nesterov": False,
        "gate": "released",
        "fill_rule": "full",
        "bank_dtype": "float32",
        "match_pseudo_labels": False,
        "lambda_ci_stage2": 0.001,
        "lambda_d": 0.5,
        "pseudo_softmax": "features",
    }
    assert settings_of(["--preset", "gta5", "--recipe", "released", "--nesterov"]).nesterov
    file = tmp_path / "settings.yaml"
    file.write_text("preset: synthia\nrecipe: released\ngate: none\n")
    config = settings_of(["--config", str(file)])
    assert (config.gate, config.fill_rule, config.source) == ("none", "full", ("synthia",))
    assert RECIPES.keys() == {"paper", "released"}


def test_vgg16_has_one_rate_in_the_released_recipe(tmp_path):
    released = ["--preset", "gta5", "--recipe", "released"]
    assert settings_of(released).head_lr_factor == 10
    assert settings_of([*released, "--arch", "vgg16"]).head_lr_factor == 1
    assert settings_of([*released, "--arch", "vgg16", "--head-lr-factor", "3"]).head_lr_factor == 3
    assert settings_of(["--preset", "gta5", "--arch", "vgg16"]).head_lr_factor == 10
    file = tmp_path / "settings.yaml"
    file.write_text("preset: gta5\nrecipe: released\narch: vgg16\n")
    assert settings_of(["--config", str(file)]).head_lr_factor == 1


def test_an_older_run_keeps_remembering_in_float32(tmp_path):
    older = settings_of(["--precision", "bf16"]).to_dict()
    assert older.pop("bank_dtype") == "auto"
    save_run(tmp_path / "last.pt", older)
    assert settings_of(["--resume", str(tmp_path)]).bank_dtype == "float32"


def test_stage_2_starts_from_the_settings_of_stage_1(tmp_path):
    stored = dataclasses.replace(PRESETS["streets"], recipe="released", gate="released", lr=0.5, out=tmp_path)
    checkpoint.save(tmp_path / "best.pt", {"config": stored.to_dict()})
    config = settings_of(["--stage", "2", "--stage1", str(tmp_path), "--seed", "4"])
    assert (config.stage, config.lr, config.gate, config.seed, config.out) == (2, 0.5, "released", 4, None)
    assert settings_of(["--stage", "2", "--stage1", str(tmp_path), "--preset", "gta5"]).lr == 2.5e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--stage 2", "stage1: must be stage 1's run folder or a checkpoint"),
        ("--stage all --method target-only", "stage: must be 1 with target-only"),
        ("--method source-only --batch-norm per-domain", "batch_norm: must be train or frozen where no target"),
        ("--transfer fda --fda-beta 0.7", r"fda_beta: must be in \(0, 0.5\), got 0.7"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        settings_of(arguments.split())


def test_the_default_is_the_paper():
    paper = Config()
    assert (paper.lr, paper.lr_d, paper.steps, paper.schedule_steps) == (2.5e-4, 1e-4, 200_000, 250_000)
    assert (paper.lambda_seg, paper.lambda_adv, paper.lambda_ci, paper.lambda_d) == (1, 0.001, 0.01, 1)
    assert (paper.stuff_rows, paper.max_instances, paper.nesterov, paper.batch_size) == (50, 10, True, 1)


@pytest.mark.parametrize(
    ("yaml_text", "message"),
    [
        ("lambda_cii: 1", "settings.yaml: unknown key 'lambda_cii'; the closest one is 'lambda_ci'"),
        ("arch: resnet102", "settings.yaml: arch: .*'resnet18'.* got 'resnet102'"),
        ("steps: many", "settings.yaml: steps: .* got 'many'"),
        ("lr: -1", r"settings.yaml: lr: must be positive, got -1.0$"),
        ("power: .nan", r"settings.yaml: power: must be a finite number, got nan$"),
        ("seed: true", r"settings.yaml: seed: must be a number, got True$"),
        ("stage: true", r"settings.yaml: stage: must be a number, got True$"),
        ("target_size: [64, yes]", r"settings.yaml: target_size: must be a number, got \[64, True\]$"),
        ("[" * 5000, "settings.yaml: must be a readable YAML file, got lists or mappings nested too deeply"),
        ("", "settings.yaml: must hold a mapping of settings, got an empty file"),
        ("\0\0", "settings.yaml: must be a readable YAML file, got an empty file"),
        ("batch_size: 0", r"settings.yaml: batch_size: must be at least 1, got 0$"),
        ("schedule_steps: 3", "schedule_steps: must be at least steps"),
        ("preset: papers", "preset: must be one of auto, .* got 'papers'"),
        ("losses: {lambda_cii: 1}", "settings.yaml: unknown key 'lambda_cii'; the closest one is 'lambda_ci'"),
        ("data: {lr: 1}", "settings.yaml: lr belongs to step, got it in data"),
        ("step: {lr: 1}\nlr: 2", "settings.yaml: lr must be given once, got 1 and 2"),
        ("lambda-ci: 1\nlambda_ci: 2", "settings.yaml: lambda_ci must be given once, got 1 and 2"),
        ("step: 3", "settings.yaml: step must be a mapping of settings, got 3"),
        ("preset: [gta5]", r"preset: must be one of auto, .* got \['gta5'\]"),
        ("recipe: {paper: 1}", r"recipe: must be one of paper, released, got \{'paper': 1\}"),
        ("source: 3", "settings.yaml: source.0: .*'gta5'.* got 3"),
        ("lr: 1\nlr: 2", "settings.yaml: must be a readable YAML file, got the key lr twice"),
        ("seed: 010", "settings.yaml: must be a readable YAML file, got 010, which YAML takes for 8"),
        ("- 3", "settings.yaml: must hold a mapping of settings, got list"),
        ("resume: x", "settings.yaml: resume belongs on the command line"),
    ],
)
def test_a_bad_settings_file_is_named_with_the_key(yaml_text, message, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(yaml_text)
    with pytest.raises(ValueError, match=message):
        settings_of(["--config", str(file)])


def test_a_settings_file_in_another_coding_is_named(tmp_path):
    (tmp_path / "settings.yaml").write_bytes("out: Straße".encode("latin-1"))
    with pytest.raises(ValueError, match=r"settings\.yaml: must be a readable YAML file, got 'utf-8' codec"):
        settings_of(["--config", str(tmp_path / "settings.yaml")])


def test_a_missing_settings_file_is_named():
    with pytest.raises(OSError, match=r"nowhere\.yaml"):
        settings_of(["--config", "nowhere.yaml"])


def test_a_resumed_run_keeps_what_its_steps_depend_on(tmp_path):
    stored = dataclasses.replace(PRESETS["streets"], seed=3, steps=10, config=tmp_path / "settings.yaml")
    save_run(tmp_path / "last.pt", stored)
    config = settings_of(["--resume", str(tmp_path), "--steps", "20"])
    assert (config.seed, config.steps, config.out, config.resume) == (3, 20, tmp_path, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"lr: a resumed run keeps its settings \(0.05 in .*\), got 0.5"):
        settings_of(["--resume", str(tmp_path), "--lr", "0.5"])
    with pytest.raises(ValueError, match=r"out: a resumed run stays in its folder .*, got elsewhere"):
        settings_of(["--resume", str(tmp_path), "--out", "elsewhere"])
    (tmp_path / "settings.yaml").write_text("lr: 0.5")
    with pytest.raises(ValueError, match=r"config: a resumed run has its own settings, got .*settings\.yaml"):
        settings_of(["--resume", str(tmp_path), "--config", str(tmp_path / "settings.yaml")])
    with pytest.raises(OSError, match=r"last\.pt is not a file"):
        settings_of(["--resume", str(tmp_path / "other")[:-2] + "last.pt"])


def test_what_is_changed_in_the_settings_file_of_a_run_does_not_count_and_is_told(tmp_path, caplog):
    stored = dataclasses.replace(PRESETS["streets"], steps=10)
    save_run(tmp_path / "last.pt", stored)
    file, text = tmp_path / "config.yaml", yaml.safe_dump(stored.portable())
    file.write_text(text)
    settings_of(["--resume", str(tmp_path)])
    assert caplog.messages == []
    file.write_text(text.replace("steps: 10", "steps: 20").replace("lr: 0.05", "lr: 0.5"))
    assert settings_of(["--resume", str(tmp_path), "--workers", "3"]).lr == 0.05
    steps, lr = sorted(caplog.messages, reverse=True)
    assert steps == f"{file}: steps is 20 in it, which does not count: the run goes on with 10; --steps changes it"
    assert lr == f"{file}: lr is 0.5 in it, which does not count: the run goes on with 0.05, as a resumed run keeps it"
    caplog.clear()
    file.write_text(text.replace("steps: 10", "stepz: 10"))
    settings_of(["--resume", str(tmp_path)])
    (message,) = caplog.messages
    assert message.startswith(f"{file}: unknown key 'stepz'")
    assert message.endswith("; it does not count for a resumed run, and is written anew")


def test_a_run_of_both_stages_whose_settings_file_was_changed_does_not_go_on(tmp_path):
    stored = dataclasses.replace(PRESETS["streets"], steps=10, stage="all")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored.portable()).replace("lr: 0.05", "lr: 0.5"))
    assert settings_of(["--resume", str(tmp_path)]).lr == 0.5
    (tmp_path / "stage1").mkdir()
    save_run(tmp_path / "stage1/last.pt", dataclasses.replace(stored, stage=1, workers=5))
    rule = r"config\.yaml: lr: a resumed run keeps its settings \(0.05 in .*stage1/last\.pt\), got 0.5"
    with pytest.raises(ValueError, match=rule):
        settings_of(["--resume", str(tmp_path)])


def test_a_run_that_saved_nothing_yet_is_told_from_one_of_both_stages(tmp_path):
    for stage in (1, "all"):
        stored = dataclasses.replace(PRESETS["streets"], stage=stage)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored.portable()))
        if stage == "all":
            assert settings_of(["--resume", str(tmp_path)]).resume == tmp_path
        else:
            with pytest.raises(OSError, match=r"checkpoint: .*last\.pt is not a file"):
                settings_of(["--resume", str(tmp_path)])


def test_settings_have_types_that_yaml_can_hold():
    assert typing.get_type_hints(Config).keys() == set(FIELDS)
    assert yaml.safe_load(yaml.safe_dump(Config().to_dict())) == Config().to_dict()
