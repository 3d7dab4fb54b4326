"""simfast: stuff and instance matching (SIM, CVPR 2020) for domain adaptation of semantic segmentation."""

__version__ = "0.1.0"
