"""What the pages name is there: links, files, modules, commands and their settings."""

import contextlib
import importlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from simfast.cli import main
from simfast.cli.commands import COMMANDS
from simfast.cli.parse import parse
from simfast.config.classes import CITYSCAPES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
READ_NO_FILE = ("train", "prepare", "check-data", "ablate")
# Of `simfast` itself, of `python -m bench.gpu`, and of pip.
OTHERS = {"--version", "--tyro-print-completion", "--budget", "--from", "--no-build-isolation"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code(page: Path) -> list[str]:
    """Lines of code blocks, continued ones as one and with the shell's variables put in, and code within the text."""
    text, variables, lines = page.read_text(), {}, []
    blocks = re.findall(r"^```\w*\n(.*?)^```|((?:^    .*\n)+)", text, re.MULTILINE | re.DOTALL)
    for line in "\n".join(map("".join, blocks)).replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), line.partition("#")[0].strip())
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assigned[1]] = assigned[2]
        lines.append(line)
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        lines.append(re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), span))
    return lines


@cache
def flags(command: str) -> set[str]:
    """The settings that a command's help names."""
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code in (None, 0)
    return set(re.findall(r"--[a-z][a-z0-9-]+", shown.getvalue()))


def slug(heading: str) -> str:
    """The anchor of a heading, as the site and GitHub make it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@each_page
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor and not anchor.startswith("simfast."):  # those are the API's, which the site makes
            assert anchor in map(slug, re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)), f"{target}#{anchor}"


@each_page
def test_files_and_modules_that_are_named_are_there(page):
    for span in code(page):
        for path in re.findall(r"(?:simfast|tests|bench|csrc|docs|examples)/[\w./*+-]*", span):
            if not re.search(r"[A-Z]{3}|\.so$", path):  # NAME; and what is built
                assert list(ROOT.glob(path)), path
    if page.name == "CHANGELOG.md":  # tells what modules were called
        return
    for name in re.findall(r"(?<![\w/])simfast(?:\.[A-Za-z]\w*)+", page.read_text()):
        assert found(name), name


def found(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(name)
        return True
    module, _, last = name.rpartition(".")
    return bool(module) and found(module) and hasattr(importlib.import_module(module), last)


@each_page
def test_commands_have_the_settings_that_are_named(page, tmp_path, monkeypatch):
    # What the pages' commands read: class lists.
    (tmp_path / "yard").mkdir()
    for name in ("classes.yaml", "yard/classes.yaml"):
        (tmp_path / name).write_text(CITYSCAPES.text())
    monkeypatch.chdir(tmp_path)
    every = OTHERS.union(*map(flags, COMMANDS))
    for line in code(page):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line))
        start = re.match(
            r"(?:torchrun --nproc-per-node N )?(?:\S*python |-m )*(simfast|train\.py)\b *([a-z][a-z-]*)?", line
        )
        if start and not line.startswith("python -m simfast."):
            command = "train" if start[1] == "train.py" else start[2]
            assert command is None or command in COMMANDS, f"{line}: no such command"
            known = flags(command) if command else every
            assert named - {"--nproc-per-node"} <= known, f"{line}: {named - known}"
            parses(line[start.end() :], command)
        elif line.startswith("--"):
            assert named <= every, f"{line}: {named - every}"


def parses(options: str, command: str | None) -> None:
    """Values too are what the command takes, as far as no file must be read for it, or is left out ("...")."""
    if command in READ_NO_FILE and not re.search(r"\.\.\.|--(resume|config|stage1|help)\b", options):
        parse([command, *shlex.split(options.replace(" N", " 2").replace("STEPS", "3"))], COMMANDS)
