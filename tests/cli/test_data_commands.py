"""The commands about data alone, where two of its parts do not go together."""

import shutil

import pytest

from simfast.cli import call


@pytest.mark.parametrize("command", ["prepare", "check-data"])
def test_a_cache_is_not_filled_or_checked_where_two_sources_would_be_one_part(command, folders, tmp_path):
    roots = [shutil.copytree(folders / "source", tmp_path / who / "renders") for who in "ab"]
    given = ["--preset", "streets", "--cache", str(tmp_path / "cache"), "--source-split", "train"]
    given += [argument for root in roots for argument in ("--source", "folder", "--source-root", str(root))]
    with pytest.raises(SystemExit, match=rf"cache: .* of {roots[0]} \(source\) and {roots[1]} \(source 2\) alike"):
        call([command, *given])
    assert not (tmp_path / "cache").exists()
