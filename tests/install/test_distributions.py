"""The wheel and the source distribution: what is in them, what they ask for, and what they are tagged."""

import hashlib
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import PurePath

import pytest
from building import build
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

pytestmark = pytest.mark.slow


def contents(wheel):
    with zipfile.ZipFile(wheel) as file:
        return {name: hashlib.sha256(file.read(name)).hexdigest() for name in file.namelist()}


def dist_info(wheel, name):
    with zipfile.ZipFile(wheel) as file:
        return message_from_bytes(file.read(next(n for n in file.namelist() if n.endswith(f".dist-info/{name}"))))


def tags(wheel):
    return {(tag.interpreter, tag.abi, tag.platform) for tag in parse_wheel_filename(wheel.name)[3]}


def test_the_source_distribution_builds_the_wheel_of_the_tree(distributions, tree, tmp_path):
    (of_tree,) = build(tree, tmp_path, "--wheel")
    assert contents(of_tree) == contents(distributions[0])


def test_the_wheel_is_for_every_python_on_its_platform(distributions):
    ((interpreter, abi, platform),) = tags(distributions[0])
    assert (interpreter, abi) == ("py3", "none")
    assert platform.startswith("linux_")
    assert dist_info(distributions[0], "WHEEL")["Root-Is-Purelib"] == "false"


def test_the_wheel_holds_the_package_alone(distributions, tree):
    names = [PurePath(name) for name in contents(distributions[0])]
    package = {str(path) for path in names if path.parts[0] == "simfast"}
    assert {path.parts[0] for path in names} - {"simfast"} == {
        f"simfast-{distributions[0].name.split('-')[1]}.dist-info"
    }
    in_tree = {str(path.relative_to(tree)) for path in (tree / "simfast").rglob("*") if path.is_file()}
    assert package == in_tree | {"simfast/_simfast.so"}


def test_the_source_distribution_holds_what_the_library_is_built_from(distributions, tree):
    with tarfile.open(distributions[1]) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = {str(path.relative_to(tree)) for path in (tree / "csrc").rglob("*") if path.is_file()}
    assert wanted | {"CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if PurePath(name).suffix in (".so", ".pyc") or name.startswith("tests")]


def test_the_core_asks_for_torch_and_numpy_alone(distributions):
    asked = [Requirement(text) for text in dist_info(distributions[0], "METADATA").get_all("Requires-Dist")]
    core = [need for need in asked if need.marker is None or need.marker.evaluate({"extra": ""})]
    assert {need.name for need in core} == {"torch", "numpy"}
    assert all(clause.operator == ">=" for need in core for clause in need.specifier)  # no version is shut out


def test_without_the_library_the_wheel_is_for_any_platform(tree, tmp_path):
    # A library that an earlier build left beside the modules is not taken along.
    stale = [tree / "simfast" / "_simfast.so", tree / "build" / "lib" / "simfast" / "gone.py"]
    for file in stale:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (wheel,) = build(tree, tmp_path, "--wheel", SIMFAST_NATIVE="0")
    stale[0].unlink()
    assert tags(wheel) == {("py3", "none", "any")}
    assert dist_info(wheel, "WHEEL")["Root-Is-Purelib"] == "true"
    assert not {"simfast/_simfast.so", "simfast/gone.py"} & set(contents(wheel))
