"""A ResNet-18 an eighth as wide, with as narrow a discriminator: a step of milliseconds and a checkpoint of 2 MB. What
the campaign looks at does not depend on the width."""

import inspect
import textwrap

WIDTH = 8


def narrow() -> None:
    """From here on this process builds narrow networks."""
    from simfast.models import deeplab, discriminator

    if discriminator.Discriminator.__init__.__defaults__ == (WIDTH,):
        return
    # Its own text with another width: what else the network becomes, it stays.
    text = textwrap.dedent(inspect.getsource(deeplab.DeepLabV2._build_resnet))
    changed = text.replace("64", str(WIDTH))
    assert changed != text, "the network's width is not said where it was"
    scope: dict = {}
    exec(changed, deeplab.__dict__, scope)
    deeplab.DeepLabV2._build_resnet = scope["_build_resnet"]
    getattr(deeplab, "NUM_FEATURES", {})["resnet18"] = 8 * WIDTH
    discriminator.Discriminator.__init__.__defaults__ = (WIDTH,)
