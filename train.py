"""Train and adapt: `python train.py --stage 1` is `simfast train --stage 1` in a checkout; see --help.

`torchrun --nproc-per-node N train.py ...` does the same with N processes, each with a batch and a GPU of its own.
"""

import sys

from simfast.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
