"""Runs a Python program on the stub GPU, in an environment with torch's CUDA build for CUDA 13 (2.11 and later):

    python -m tests.stub --build                  the stub, and simfast's library for it: after every change of csrc/
    python -m tests.stub PROGRAM.py ARGUMENTS     the program
    python -m tests.stub -m MODULE ARGUMENTS      the module

from the repository's root. `torch.cuda` has one "H100" then, on which nothing is computed. In the program,
`import stub_gpu` tells what was asked of it; the Pythons that it starts are on the stub too. STUB_GPU_STOP=1 ends the
program at the first violation, with the place in Python.
"""

import os
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSIDE = "STUB_GPU_INSIDE"


def main() -> None:
    arguments = sys.argv[1:]
    if os.environ.pop(INSIDE, None):
        run(arguments)
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        raise SystemExit(__doc__)
    sys.path.insert(0, str(HERE))
    import stub_build

    if arguments == ["--build"]:
        stub_build.build()
        stub_build.build_native()
        return
    if not stub_build.NATIVE.exists():
        raise SystemExit("tests/stub: simfast's library for the stub is missing; python -m tests.stub --build")
    environment = os.environ | {
        INSIDE: "1",
        "LD_PRELOAD": ":".join(map(str, stub_build.build())),
        "SIMFAST_LIBRARY": os.environ.get("SIMFAST_LIBRARY", str(stub_build.NATIVE)),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(stub_build.ROOT), str(HERE), os.environ.get("PYTHONPATH")])),
        "PYTHONFAULTHANDLER": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    os.execve(sys.executable, [sys.executable, *sys.argv[:1], *arguments], environment)


def run(arguments: list[str]) -> None:
    """The program in this process, which has the stub loaded."""
    import stub_triton

    stub_triton.install()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
