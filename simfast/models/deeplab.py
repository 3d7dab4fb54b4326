"""DeepLabV2 on ResNet-18/50/101 and VGG16, with the parameter names of the AdaptSegNet family.

Letters: B images, H W pixels, h w feature map at stride 8, C feature channels, K classes, N vectors.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simfast.models.layers import BasicBlock, BatchNorm, Bottleneck, Stage, vgg16_layers
from simfast.ops.sum_of_taps import num_taps, sum_of_taps

RESNET_STAGES = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
NUM_FEATURES = {"resnet18": 512, "resnet50": 2048, "resnet101": 2048, "vgg16": 1024}
ARCHITECTURES = (*RESNET_STAGES, "vgg16")
HEAD_DILATIONS = (6, 12, 18, 24)
RESNET_STYLES = ("caffe", "torchvision")
VGG16_FC6_FC7 = ("features.29", "features.31")
BATCH_NORM_MODES = ("train", "frozen", "per-domain")
DOMAINS = ("source", "target")


def deeplab_v2(
    arch: str,
    num_classes: int,
    head_dilations: Sequence[int] = HEAD_DILATIONS,
    batch_norm: str = "train",
    resnet_style: str = "caffe",
) -> "DeepLabV2":
    """A randomly initialised DeepLabV2; see `DeepLabV2` for the arguments."""
    return DeepLabV2(arch, num_classes, head_dilations, batch_norm, resnet_style)


class DeepLabV2(nn.Module):
    """Segmentation network G = C o F of the paper: a dilated backbone F at stride 8 and a head C.

    ResNets follow the released code: max-pool in ceil mode, layer3 dilated by 2 and layer4 by 4 at stride 1. The
    released code's weights come from caffe, where a bottleneck has its stride on the first 1x1 convolution; those of
    torchvision (ResNet v1.5) have it on the 3x3 one, which is therefore the one convolution of a stage that still has
    the dilation of the stage before: `resnet_style`. VGG16 loses pool4 and pool5, conv5 is dilated by 2, and fc6
    and fc7 are 3x3 convolutions dilated by 4. The affine parameters of every batch norm are frozen.
    Backbone convolutions start from kaiming normal (fan out), but VGG16's fc6 and fc7 from PyTorch's default (released
    code): they usually sit on pretrained layers with large activations. The head is described at `DilatedHead`.

    Args:
        arch: "resnet18", "resnet50", "resnet101" or "vgg16".
        num_classes: K, at least 2.
        head_dilations: one branch of the head per entry; the released code's live branches are (6, 12).
        batch_norm: "train" follows .train() and .eval(), and both domains move the running statistics; "frozen" keeps
            batch norms on their running statistics always; "per-domain" is "train", but a source batch leaves the
            running statistics alone, so that they are the target's (AdaBN, Li et al. 2017).
        resnet_style: "caffe" or "torchvision", how a stage of a ResNet begins: as the network did that its weights were
            trained in. On every fourth pixel the map of features is then what that network, with strides in place of
            dilations, computes. It makes no difference to the names and shapes of tensors, and none to VGG16.

    Attributes:
        arch: as given.
        num_classes: K, as given.
        head_dilations: as given, a tuple.
        resnet_style: as given.
        num_features: C; 512 for ResNet-18, 2048 for ResNet-50 and -101, 1024 for VGG16.
        head_name: where the head sits in the state dict, "layer6" or, for VGG16, "classifier".

    Raises:
        ValueError: an argument outside the sets above.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        head_dilations: Sequence[int] = HEAD_DILATIONS,
        batch_norm: str = "train",
        resnet_style: str = "caffe",
    ) -> None:
        super().__init__()
        head_dilations = tuple(head_dilations)
        if arch not in ARCHITECTURES:
            raise ValueError(f"DeepLabV2: arch must be one of {', '.join(ARCHITECTURES)}, got {arch!r}")
        if num_classes < 2:
            raise ValueError(f"DeepLabV2: num_classes must be at least 2, got {num_classes}")
        if not head_dilations or min(head_dilations) < 1:
            raise ValueError(f"DeepLabV2: head_dilations must be one or more positive integers, got {head_dilations}")
        if batch_norm not in BATCH_NORM_MODES:
            raise ValueError(f"DeepLabV2: batch_norm must be one of {', '.join(BATCH_NORM_MODES)}, got {batch_norm!r}")
        if resnet_style not in RESNET_STYLES:
            raise ValueError(f"DeepLabV2: resnet_style must be one of {', '.join(RESNET_STYLES)}, got {resnet_style!r}")
        self.arch, self.num_classes, self.batch_norm = arch, num_classes, batch_norm
        self.head_dilations, self.resnet_style = head_dilations, resnet_style
        self.num_features = NUM_FEATURES[arch]
        self.head_name = "classifier" if arch == "vgg16" else "layer6"
        if arch == "vgg16":
            self.features = vgg16_layers()
        else:
            self._build_resnet(RESNET_STAGES[arch], BasicBlock if arch == "resnet18" else Bottleneck)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and name not in VGG16_FC6_FC7:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # After the loop above, which must not reach the head.
        self.add_module(self.head_name, DilatedHead(self.num_features, num_classes, head_dilations))
        self.train()

    def _build_resnet(self, depths: Sequence[int], block: type[BasicBlock] | type[Bottleneck]) -> None:
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm(64)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=True)
        channels, before, strides, dilations = 64, 1, (1, 2, 1, 1), (1, 1, 2, 4)
        late = self.resnet_style == "torchvision"
        for index, (depth, stride, dilation) in enumerate(zip(depths, strides, dilations, strict=True)):
            width = 64 * 2**index
            blocks = [block(channels, width, stride, dilation, before if late else dilation, late)]
            channels, before = width * block.expansion, dilation
            blocks += [block(channels, width, 1, dilation, dilation, late) for _ in range(depth - 1)]
            self.add_module(f"layer{index + 1}", Stage(*blocks))

    @property
    def settings(self) -> dict[str, Any]:
        """What it takes to build it once more, but for the class list: arguments of these names, plain values."""
        names = ("arch", "head_dilations", "batch_norm", "resnet_style")
        return {name: getattr(self, name) for name in names} | {"head_dilations": list(self.head_dilations)}

    @property
    def head(self) -> "DilatedHead":
        """The classification head C, a module of this network."""
        return self.get_submodule(self.head_name)

    def forward(self, images: Tensor, domain: str = "target") -> tuple[Tensor, Tensor]:
        """Features and logits at stride 8.

        Args:
            images: floating [B, 3, H, W], normalised as the weights want it (`simfast.models.normalise`).
            domain: "source" or "target"; matters for batch_norm "per-domain" in training alone.

        Returns:
            features: [B, C, h, w], the raw post-ReLU res5 map (VGG16: post-ReLU fc7).
            logits: [B, K, h, w].

        ResNets: h = ceil((ceil(H / 2) // 2 + 1) / 2), so 720 -> 91; VGG16: h = H // 8, so 720 -> 90. Same for w.

        Raises:
            ValueError: images of another rank or channel count; another domain.
        """
        if domain not in DOMAINS:
            raise ValueError(f"DeepLabV2: domain must be one of {', '.join(DOMAINS)}, got {domain!r}")
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"DeepLabV2: images must be [B, 3, H, W], got {list(images.shape)}")
        if self.arch == "vgg16":
            features = again = self.features(images)
        else:
            track = self.batch_norm != "per-domain" or domain == "target"
            first = self.maxpool(self.bn1(self.conv1(images), track, act=True))
            pair = first, first
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
                pair = stage(pair, track)
            features, again = pair
        return features, self.head(again)

    def classify(self, vectors: Tensor) -> Tensor:
        """Logits [N, K] of the head applied to each of vectors [N, C] as a 1x1 map (the released code's class gate).

        Raises:
            ValueError: vectors of another rank or width.
        """
        if vectors.dim() != 2 or vectors.shape[1] != self.num_features:
            raise ValueError(f"DeepLabV2: vectors must be [N, {self.num_features}], got {list(vectors.shape)}")
        return self.head.classify(vectors)

    def parameter_groups(self, lr: float, head_factor: float = 10.0) -> list[dict]:
        """Two optimizer groups of the trainable parameters: "backbone" at lr, "head" at head_factor * lr.

        The factor of 10 is the released code's for pretrained ResNets; its VGG16 is one group, factor 1.
        """
        head = [parameter for parameter in self.head.parameters() if parameter.requires_grad]
        in_head = {id(parameter) for parameter in head}
        backbone = [p for p in self.parameters() if p.requires_grad and id(p) not in in_head]
        return [
            {"params": backbone, "lr": lr, "name": "backbone"},
            {"params": head, "lr": head_factor * lr, "name": "head"},
        ]

    def listings(self) -> dict[Tensor, int]:
        """How often the released optimiser lists each trainable parameter outside the head.

        For a ResNet once for each module that it is in, from conv1 or a layer on: conv1 1, blocks 3, their downsample
        4. VGG16's stand there once.
        """
        trainable = {n: p for n, p in self.named_parameters() if p.requires_grad and not n.startswith(self.head_name)}
        return {p: 1 if self.arch == "vgg16" else name.count(".") for name, p in trainable.items()}

    def train(self, mode: bool = True) -> "DeepLabV2":
        """Sets the mode as nn.Module does, except that frozen batch norms stay in eval mode."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class DilatedHead(nn.Module):
    """The sum of dilated 3x3 convolutions, one per dilation (DeepLabV2's ASPP as the released code has it).

    Weights start from normal(0, 0.01); biases keep PyTorch's default, uniform in +-1/sqrt(9 C), as released.
    """

    fused = False
    """Set by `simfast.models.fusing.fuse`."""

    def __init__(self, num_features: int, num_classes: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.dilations = tuple(dilations)
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(num_features, num_classes, kernel_size=3, padding=d, dilation=d) for d in dilations
        )
        for convolution in self.conv2d_list:
            nn.init.normal_(convolution.weight, 0, 0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, K, h, w] of features [B, C, h, w]."""
        if self.fused:
            return self._from_one_product(features)
        logits = self.conv2d_list[0](features)
        for convolution in self.conv2d_list[1:]:
            logits = logits + convolution(features)
        return logits

    def _from_one_product(self, features: Tensor) -> Tensor:
        """The same by one matrix product: each pixel with every tap's weight, the centre's being one for all branches.

        Features are then read once, and a product of hundreds of columns is what GPUs do best.
        """
        taps = [c.weight.permute(2, 3, 0, 1).flatten(0, 1).unbind() for c in self.conv2d_list]
        rows = [sum(nine[4] for nine in taps), *(tap for nine in taps for tap in (*nine[:4], *nine[5:]))]
        # Rows of a multiple of eight values: 16 bytes of 16-bit ones, without which tensor cores are fed slowly.
        num_classes, num_features = rows[0].shape
        rows.append(rows[0].new_zeros(-num_taps(self.dilations) * num_classes % 8, num_features))
        products = F.linear(features.permute(0, 2, 3, 1), torch.cat(rows))
        bias = sum(convolution.bias for convolution in self.conv2d_list)
        return sum_of_taps(products, bias if products.dtype == torch.float64 else bias.float(), self.dilations)

    def classify(self, vectors: Tensor) -> Tensor:
        """Logits [N, K] of vectors [N, C], each taken as a 1x1 map.

        On a 1x1 map every tap of a zero-padded 3x3 kernel but the centre reads padding, so the branches collapse into
        one matrix product.
        """
        weight = sum(convolution.weight[:, :, 1, 1] for convolution in self.conv2d_list)
        bias = sum(convolution.bias for convolution in self.conv2d_list)
        return F.linear(vectors, weight, bias)
