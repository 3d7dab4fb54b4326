"""A program with ways of its own, in which a run is a guest: `python host.py FOLDER HOW` prints what it finds changed,
as JSON, and what it heard of the log."""

import importlib
import json
import logging
import os
import pkgutil
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import torch

heard = []


class Ears(logging.Handler):
    def emit(self, record):
        heard.append((record.name, record.levelname, record.getMessage()))


def set_up():
    logging.getLogger().handlers[:] = [Ears()]
    logging.getLogger().setLevel(logging.WARNING)
    matplotlib.use("svg")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    warnings.simplefilter("ignore", ResourceWarning)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = False, True
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(7)


def state():
    log, ours = logging.getLogger(), logging.getLogger("simfast")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1)  # SIGCHLD is torch's
    return {
        "root logger": (log.level, log.handlers[:], log.disabled, log.filters[:]),
        "our logger": (ours.level, ours.handlers[:], ours.disabled, ours.propagate, ours.isEnabledFor(logging.INFO)),
        "backend": (matplotlib.get_backend(), dict(matplotlib.rcParams)),
        "figures": [*sys.modules["matplotlib._pylab_helpers"].Gcf.figs] if "matplotlib.pyplot" in sys.modules else [],
        "signals": [signal.getsignal(number) for number in numbers],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "warnings": warnings.filters[:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "streams": (sys.stdout, sys.stderr, sys.excepthook, sys.displayhook),
        "threads of torch": torch.get_num_threads(),
        "determinism": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32),
        "matmul": (torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()),
        "default dtype": torch.get_default_dtype(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "random": (torch.get_rng_state().tolist(), torch.initial_seed(), random.getstate()),
        "random of numpy": [np.asarray(x).tolist() for x in np.random.get_state()],  # noqa: NPY002
        "sharing": torch.multiprocessing.get_sharing_strategy(),
    }


def changed(before):
    now = state()
    return [name for name in before if before[name] != now[name]]


def train(out, **more):
    from simfast.config import Config
    from simfast.config.presets import PRESETS
    from simfast.training.run import run

    sizes = {"source_size": [64, 32], "target_size": [64, 32], "batch_size": 1, "panel_images": 1}
    own = {"arch": "resnet18", "steps": 1, "eval_every": 1, "log_every": 1, "device": "cpu", "workers": 1}
    return run(Config.from_dict(sizes | own | {"out": str(out)} | more, "host", PRESETS["streets"]))


def command(out):
    from simfast.cli import call

    options = "--arch resnet18 --steps 1 --eval-every 1 --device cpu --workers 0 --batch-size 1 --panel-images 1"
    return call(
        ["train", *options.split(), "--source-size", "64", "32", "--target-size", "64", "32", "--out", str(out)]
    )


def failing(out):
    try:
        return train(out, weights=str(out.with_name("no such file")))
    except (ValueError, OSError) as error:
        return str(error)


def said_by(work):
    """What a work says of itself in the end, in the main thread or in one beside it."""
    results = []

    def guarded():
        try:
            results.append(str(work()))
        except BaseException as error:
            results.append(f"raised {error!r}")

    return results, guarded


def main(folder, how):
    for theirs in ("cv2", "matplotlib.pyplot", "torch.utils.tensorboard"):  # what these change on import is theirs
        importlib.import_module(theirs)

    import simfast

    ways = {"run": train, "command": command, "error": failing}
    set_up()
    before = state()
    for module in pkgutil.walk_packages(simfast.__path__, "simfast."):
        if module.name not in ("simfast.__main__", "simfast._simfast"):  # a program, and no module of Python
            importlib.import_module(module.name)
    found = {"by importing": changed(before)}
    kind, _, thread = how.partition("-")
    results, work = said_by(lambda: ways[kind](folder / how))
    if thread:
        one = threading.Thread(target=work)
        one.start()
        one.join()
    else:
        work()
    found |= {"by running": changed(before), "result": results, "heard": heard}
    found["drawn"] = torch.rand(3).tolist()
    found["written"] = sorted(path.name for path in (folder / how).glob("*"))
    print(json.dumps(found), file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
