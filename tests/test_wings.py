"""The order of the package's wings: each imports only what stands below it, inside functions too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "simfast"
# From the top. Wings of one level do not know each other.
LEVELS = (
    *(("cli",), ("analysis",), ("training",), ("report",), ("inference",)),
    *(("data", "models", "matching"), ("ops", "config", "runtime")),
)
MAY_IMPORT = {wing: {wing}.union(*LEVELS[level + 1 :]) for level, wings in enumerate(LEVELS) for wing in wings}
# matching can be taken without the trainer; reference is the definition of correct, which no op may lean on.
MAY_IMPORT |= {"matching": {"matching", "ops", "reference"}, "reference": {"reference"}, "testing": set()}
MAY_IMPORT |= {"__init__": {"matching"}, "__main__": {"cli"}}


def imported(path: Path) -> set[str]:
    """Whole names, as `simfast.ops.nearest_l1` of `from simfast.ops import nearest_l1`."""
    nodes, names = list(ast.walk(ast.parse(path.read_text()))), set()
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(path: Path) -> set[str]:
    """The wings, and the modules beside them, that a file imports from."""
    parts = [name.split(".") for name in imported(path)]
    return {part[1] for part in parts if part[0] == "simfast" and len(part) > 1} - {"__version__"}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_stands_below_it(room):
    files = sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    wrong = {str(file.relative_to(ROOT)): sorted(rooms(file) - MAY_IMPORT[room]) for file in files}
    assert {file: names for file, names in wrong.items() if names} == {}


def test_every_room_is_known_here_and_has_its_tests():
    folders = {file.parent.relative_to(PACKAGE).parts[0] for file in PACKAGE.glob("*/**/*.py")}
    modules = {file.stem for file in PACKAGE.glob("*.py")}
    assert folders | modules == set(MAY_IMPORT)
    without = {wing for wing in folders if not list((ROOT / "tests" / wing).glob("test_*.py"))}
    assert without == {"reference"}  # whose tests stand beside those of the ops


def test_reference_needs_torch_alone():
    names = set().union(*map(imported, (PACKAGE / "reference").glob("*.py")))
    assert {name.split(".")[0] for name in names if not name.startswith("simfast.reference.")} <= {
        "torch",
        "collections",
    }


def test_only_what_runs_commands_imports_the_command_line():
    files = [*ROOT.glob("*.py"), *ROOT.glob("examples/**/*.py"), *ROOT.glob("tools/**/*.py")]
    assert {file.name for file in files if "cli" in rooms(file)} <= {"train.py"}
