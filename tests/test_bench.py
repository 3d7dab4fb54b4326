"""The rules of the benchmarks: right before fast, a missing peer is named, a result file becomes a table and a plot."""

import json
from types import SimpleNamespace

import pytest

from bench import table, timing
from bench.timing import Contender, compare


@pytest.fixture
def benchmark_stub(monkeypatch):
    """What compare() needs of pytest-benchmark's fixture, without its table at the end of the tests."""
    monkeypatch.setattr(timing, "copy_rate", lambda device: 1e9)
    return SimpleNamespace(extra_info={}, pedantic=lambda run, **_: run())


def says(value, calls):
    def run():
        calls.append(value)
        return value

    return run


def must_be(expected):
    def check(found):
        assert found == expected

    return check


def test_no_time_for_a_wrong_result(benchmark_stub):
    calls = []
    contenders = [Contender("right", says(1, calls), must_be(1)), Contender("wrong", says(2, calls), must_be(1))]
    with pytest.raises(AssertionError):
        compare(benchmark_stub, contenders, "cpu", bytes_moved=10)
    assert calls == [1, 2]  # checked once each, timed never
    assert benchmark_stub.extra_info == {}


def test_contenders_take_turns_and_a_missing_one_is_named(benchmark_stub):
    calls = []
    contenders = [Contender("a", says(1, calls)), Contender("b", says(2, calls)), Contender("c", missing="no module c")]
    compare(benchmark_stub, contenders, "cpu", bytes_moved=10, rounds=4)
    assert calls == [1, 2] + [1, 1, 2, 2] * 4 + [1]  # check, rounds with a warm-up each, pytest-benchmark's own
    rows = benchmark_stub.extra_info["contenders"]
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["times_the_first"] == 1
    assert rows[0]["samples"] == rows[1]["samples"] == 4
    assert rows[2] == {"name": "c", "missing": "no module c"}


def test_a_result_becomes_a_table_and_a_plot(benchmark_stub, tmp_path, monkeypatch, capsys):
    compare(
        benchmark_stub, [Contender("ours", list), Contender("theirs", missing="not installed")], "cpu", 10, rounds=3
    )
    case = {"name": "components.py::bench[x]", **benchmark_stub.extra_info}
    result = {
        **dict.fromkeys(("gpu", "driver")), "cpu": "a CPU", "cores": 2, "commit": "0123456789ab", "date": "today",
        "versions": {"torch": "2.13"}, "load_before_and_after": [0.1, 0.2], "note": "", "cases": [case],
    }  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr("sys.argv", ["table", str(tmp_path / "result.json"), "--plot", str(tmp_path / "plot.png")])
    table.main()
    printed = capsys.readouterr().out
    assert "a CPU, 2 cores; torch 2.13; commit 0123456789" in printed
    assert "missing: not installed" in printed
    assert (tmp_path / "plot.png").stat().st_size > 1000
