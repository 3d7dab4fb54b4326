"""What a program says of itself on a terminal, in a pipe and in a file."""

import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest

from simfast.runtime.console import Progress, in_file, on_terminal
from simfast.runtime.interrupts import interrupts_heard

BEGIN = """import logging, sys
from simfast.runtime.console import on_terminal
from simfast.runtime.pipe import quiet_pipe
"""


def test_without_a_terminal_a_long_work_says_plain_lines_and_draws_nothing(monkeypatch, caplog, capfd):
    monkeypatch.setattr(Progress, "line_seconds", 0)
    caplog.set_level(logging.INFO, "simfast")
    assert list(Progress("abc", desc="read", unit="image")) == list("abc")
    lines = [record.message for record in caplog.records]
    assert [line.split(",")[0] for line in lines] == [f"read: {i}/3" for i in (1, 2, 3)]
    assert re.fullmatch(r"read: 3/3, [\d.e+]+ image/s, 00:00 left", lines[-1])
    assert capfd.readouterr() == ("", "")


def test_what_is_quickly_done_is_not_worth_a_line(caplog):
    caplog.set_level(logging.INFO, "simfast")
    with Progress(total=5, initial=2, desc="read") as bar:
        bar.update(2)
    assert (bar.n, caplog.records) == (4, [])


def test_each_line_of_a_log_file_has_its_time_and_the_terminal_none(tmp_path, capsys):
    with on_terminal(), in_file(tmp_path / "log.txt"):
        logging.getLogger("simfast").info("a table\nof two lines")
    assert capsys.readouterr().out == "a table\nof two lines\n"
    times, texts = zip(*(line.split(" ", 1) for line in (tmp_path / "log.txt").read_text().splitlines()), strict=True)
    assert texts == ("a table", "of two lines")
    assert all(datetime.fromisoformat(time).utcoffset() is not None for time in times)


def test_a_log_file_takes_names_that_are_not_utf_8(tmp_path):
    with in_file(tmp_path / "log.txt"):
        logging.getLogger("simfast").info("b\udce4d.png")  # as Python reads the byte 0xe4
    assert (tmp_path / "log.txt").read_text().endswith(r" b\udce4d.png" + "\n")


def test_a_log_file_on_a_full_disk_is_said_once_and_is_no_error_at_its_end(tmp_path, capfd):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with in_file(tmp_path / "log.txt"):
        for line in ("one", "two"):
            logging.getLogger("simfast").info(line)
    assert capfd.readouterr().err.splitlines() == [
        f"{tmp_path}/log.txt: lines are lost: [Errno 28] No space left on device"
    ]


def ended(code):
    """Exit status and standard error of a program whose reader has gone before it writes anything."""
    program = f"{BEGIN}sys.stdin.read()\nwith quiet_pipe():\n" + "".join(f"    {line}\n" for line in code.splitlines())
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", program], text=True, env=buffered, **pipes)
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate("")
    return process.returncode, errors


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("print('little')", id="what is still buffered at the end"),
        pytest.param("print('much' * 9999)", id="in the middle"),
        pytest.param("print('little')\nraise SystemExit(0)", id="before a good end"),
        pytest.param("with on_terminal():\n    logging.getLogger('simfast').info('a line')", id="in the log"),
        pytest.param(
            "try:\n    print('much' * 9999)\nexcept OSError as error:\n    raise SystemExit(f'{error}') from None",
            id="taken for another error",
        ),
    ],
)
def test_a_program_without_a_reader_ends_without_a_word(code):
    assert ended(code) == (141, "")


def test_an_error_of_another_kind_keeps_its_message_and_status_without_a_reader():
    assert ended("print('little')\nraise SystemExit('a bad argument')") == (1, "a bad argument\n")


def test_another_pipe_that_breaks_is_an_error():
    code = "import os\nwith quiet_pipe():\n    ends = os.pipe()\n    os.close(ends[0])\n    os.write(ends[1], b'x')\n"
    done = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


@pytest.fixture
def interruptible():
    """Ctrl-C as a terminal has it, where these tests run with it ignored, too."""
    before, alarm = signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGALRM) == alarm
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_in_the_middle_of_an_import_waits_for_its_end(interruptible, tmp_path, monkeypatch):
    swallowed = "try:\n    signal.raise_signal(signal.SIGINT)\n    time.sleep(0.2)\nexcept BaseException:\n    pass\n"
    (tmp_path / "half_imported.py").write_text(f"import signal, time\n{swallowed}else:\n    whole = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def imports_and_waits():
        importlib.import_module("half_imported")
        time.sleep(20)

    with pytest.raises(KeyboardInterrupt), interrupts_heard():
        imports_and_waits()
    assert sys.modules["half_imported"].whole


def test_an_interrupt_in_an_import_without_an_end_comes_at_last(interruptible, tmp_path, monkeypatch):
    monkeypatch.setattr("simfast.runtime.interrupts.LONGEST_IMPORT", 0.1)
    (tmp_path / "endless.py").write_text("import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(20)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt), interrupts_heard():
        importlib.import_module("endless")


def test_an_interrupt_where_no_error_gets_out_is_heard_right_after_without_a_word(interruptible, capfd):
    class Deleted:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def deletes_and_waits():
        Deleted()
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interrupts_heard():
        deletes_and_waits()
    assert time.monotonic() - began < 50  # not when it had waited
    assert capfd.readouterr() == ("", "")


# When: while Python waits for threads that have not ended, and in what libraries have asked for at its end.
WAITING = """def interrupt():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.1)
threading.Thread(target=interrupt).start()
"""
TIDYING = "atexit.register(signal.raise_signal, signal.SIGINT)\n"


@pytest.mark.parametrize("when", [WAITING, TIDYING])
def test_an_interrupt_of_a_program_that_is_ending_says_nothing(when):
    begin = "import atexit, signal, threading, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = f"{begin}{when}from simfast.cli import main\nmain(['--version'])\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("simfast ")
