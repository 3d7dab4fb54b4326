"""What a machine with a GPU is asked, in parts, the most worth knowing first: `python -m bench.gpu OUT`."""
