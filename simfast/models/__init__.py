"""The networks: DeepLabV2, the discriminator, and the loading of their weights."""

from simfast.models.deeplab import ARCHITECTURES, DeepLabV2, deeplab_v2
from simfast.models.discriminator import Discriminator
from simfast.models.restore import Restored, restore_model
from simfast.models.weights import CONVENTIONS, WeightsReport, load_weights, normalise

__all__ = [
    "ARCHITECTURES",
    "CONVENTIONS",
    "DeepLabV2",
    "Discriminator",
    "Restored",
    "WeightsReport",
    "deeplab_v2",
    "load_weights",
    "normalise",
    "restore_model",
]
