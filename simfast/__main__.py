"""`python -m simfast` is the command `simfast`."""

from simfast.cli import main

main()
