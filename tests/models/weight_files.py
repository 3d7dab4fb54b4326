"""Files of weights in small: of this package, of the AdaptSegNet family, of torchvision."""

import torch

from simfast.config import Config
from simfast.config.classes import classes_of
from simfast.models import deeplab_v2

VGG16_CHANNELS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
VGG16_CHANNELS |= {17: (256, 512), **dict.fromkeys((19, 21, 24, 26, 28), (512, 512))}


def constant(value, *shape):
    # One stored element whatever the shape: the files stay tiny.
    return torch.tensor(float(value)).expand(shape)


def numbered(arch, prefix="", **options):
    """State dict of arch without its head, each tensor filled with its own number."""
    with torch.device("meta"):
        model = deeplab_v2(arch, **({"num_classes": 19} | options))
    names = {
        k: v for k, v in model.state_dict().items() if "num_batches" not in k and not k.startswith(model.head_name)
    }
    return {prefix + name: constant(i + 1, *t.shape) for i, (name, t) in enumerate(names.items())}


def branches(head, num_branches, num_classes, channels):
    shapes = {"weight": (num_classes, channels, 3, 3), "bias": (num_classes,)}
    return {
        f"{head}.conv2d_list.{i}.{kind}": constant(i, *s) for i in range(num_branches) for kind, s in shapes.items()
    }


def torchvision_vgg16():
    state = {}
    for index, (inputs, outputs) in VGG16_CHANNELS.items():
        state[f"features.{index}.weight"] = constant(index, outputs, inputs, 3, 3)
        state[f"features.{index}.bias"] = constant(index, outputs)
    return state


def saved(tmp_path, content, **options):
    path = tmp_path / "weights.pth"
    torch.save(content, path, **options)
    return path


def assert_loaded(model, state):
    own = model.state_dict()
    for name, tensor in state.items():
        assert torch.equal(own[name], tensor.to(own[name].dtype)), name


def released_resnet(arch, classes=19, **branch_channels):
    return numbered(arch) | {
        k: v for head, channels in branch_channels.items() for k, v in branches(head, 4, classes, channels).items()
    }


def own_checkpoint(model, convention="rgb", **settings):
    settings = Config(arch=model.arch, **settings).to_dict()
    return {"format": "simfast", "model": model.state_dict(), "convention": convention, "config": settings}


def class_list(*names, title="mine", blue=9):
    colours = ([i, 7, blue] for i in range(len(names)))
    entries = [{"name": n, "colour": c, "kind": "stuff"} for n, c in zip(names, colours, strict=True)]
    return classes_of({"title": title, "classes": entries})
