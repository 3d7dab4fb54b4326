"""The command `simfast`. Its help needs neither torch nor anything else that takes long to import."""

import logging
import os
import random
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from simfast.runtime.interrupts import comes_of_an_interrupt, interrupts_heard
from simfast.runtime.pipe import quiet_pipe

# What has to be there for a command to run: the packages of the extra `train`, by the names of their modules.
TRAINING = ("PIL", "cv2", "matplotlib", "numpy", "pydantic", "pydantic_core", "tabulate", "tensorboard", "tqdm")
TRAINING += ("tyro", "yaml")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """`simfast COMMAND ...`.

    Raises:
        SystemExit: 0 if all is well, else 1 with what went wrong; 2 for a bad command line; 128 + the signal's number.
    """
    # CPU threads that wait by spinning make a step several times slower as soon as another program wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if os.environ.get("RANK", "0") != "0":  # one progress bar for all processes of torchrun
        os.environ["TQDM_DISABLE"] = "1"
    with quiet_pipe(), interrupts_heard():
        status = call(sys.argv[1:] if argv is None else argv)
        raise SystemExit(status if isinstance(status, int) else 0)


def call(argv: Sequence[str]) -> Any:
    """What a command line's command returns: its exit status, or the result of a run.

    Raises:
        SystemExit: what went wrong, in one line; help.
    """
    argv = list(argv) or ["--help"]
    if argv == ["--version"]:
        from simfast import __version__

        print(f"simfast {__version__}")
        return 0
    try:
        from simfast.cli.commands import COMMANDS
        from simfast.cli.parse import parse
        from simfast.cli.places import require_places
        from simfast.runtime.console import on_terminal

        # Of several processes of torchrun the first one tells.
        with on_terminal(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR):
            drawn = random.getstate()
            command = parse(argv, COMMANDS)
            random.setstate(drawn)  # tyro draws numbers that are the program's around
            require_places(command)
            return command.run()
    except ModuleNotFoundError as error:
        if (name := (error.name or "").split(".")[0]) not in TRAINING:
            raise
        remedy = f"pip install 'simfast[train]' (got no {name})"
        raise SystemExit(f"simfast: needs its training packages: {remedy}") from error
    except KeyboardInterrupt:  # where no step is to be finished, or for the second time
        raise SystemExit(130) from None
    except Exception as error:
        if comes_of_an_interrupt(error):  # in the middle of a library, which took it for something else
            raise SystemExit(130) from None
        if isinstance(error, ValueError | OSError):
            raise SystemExit(f"simfast {argv[0]}: {error}") from error
        if text := _out_of_memory(error):  # of a run, with its settings, training says it
            raise SystemExit(f"simfast {argv[0]}: {text}") from error
        raise


def _out_of_memory(error: Exception) -> str | None:
    if "torch" not in sys.modules:
        return None
    from simfast.training.failures import is_of_gpu, of_memory

    if (cause := of_memory(error)) is None:
        return None
    on_gpu = is_of_gpu(cause)
    came = str(cause).strip().splitlines() or [type(cause).__name__]
    helps = f"--target-size (of predict --input-size), {'--device cpu' if on_gpu else 'fewer --workers'}"
    what = f"out of memory on the {'GPU' if on_gpu else 'CPU'} ({came[0]}); what helps: a smaller {helps}"
    return f"{what} or memory that other programs give back"
