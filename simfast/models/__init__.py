"""The networks: DeepLabV2, the discriminator, and the loading of their weights."""

from simfast.models.deeplab import ARCHITECTURES, DeepLabV2, deeplab_v2
from simfast.models.discriminator import Discriminator
from simfast.models.inputs import normalise
from simfast.models.recognise import Told, told
from simfast.models.restore import Restored, restore_model, save_weights
from simfast.models.weights import WeightsReport, load_weights
from simfast.models.weights_file import CONVENTIONS, WeightsFile, read_weights

__all__ = [
    "ARCHITECTURES",
    "CONVENTIONS",
    "DeepLabV2",
    "Discriminator",
    "Restored",
    "Told",
    "WeightsFile",
    "WeightsReport",
    "deeplab_v2",
    "load_weights",
    "normalise",
    "read_weights",
    "restore_model",
    "save_weights",
    "told",
]
