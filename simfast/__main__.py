"""`python -m simfast` is the command `simfast`."""

from simfast.cli.commands import main

main()
