"""DeepLabV2 on ResNet-18/50/101 and VGG16, with the parameter names of the AdaptSegNet family.

Letters: B images, H W pixels, h w feature map at stride 8, C feature channels, K classes, N vectors.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

RESNET_STAGES = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
ARCHITECTURES = (*RESNET_STAGES, "vgg16")
VGG16_FC6_FC7 = ("features.29", "features.31")
BATCH_NORM_MODES = ("train", "frozen", "per-domain")
DOMAINS = ("source", "target")


def deeplab_v2(
    arch: str, num_classes: int, head_dilations: Sequence[int] = (6, 12, 18, 24), batch_norm: str = "train"
) -> "DeepLabV2":
    """A randomly initialised DeepLabV2; see `DeepLabV2` for the arguments."""
    return DeepLabV2(arch, num_classes, head_dilations, batch_norm)


class DeepLabV2(nn.Module):
    """Segmentation network G = C o F of the paper: a dilated backbone F at stride 8 and a head C.

    ResNets follow the released code: max-pool in ceil mode, layer3 dilated by 2 and layer4 by 4 at stride 1, the
    stride of a bottleneck on its first 1x1 convolution. VGG16 loses pool4 and pool5, conv5 is dilated by 2, and fc6
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

    Attributes:
        arch: as given.
        num_classes: K, as given.
        num_features: C; 512 for ResNet-18, 2048 for ResNet-50 and -101, 1024 for VGG16.
        head_name: where the head sits in the state dict, "layer6" or, for VGG16, "classifier".

    Raises:
        ValueError: an argument outside the sets above.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        head_dilations: Sequence[int] = (6, 12, 18, 24),
        batch_norm: str = "train",
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
        self.arch, self.num_classes, self.batch_norm = arch, num_classes, batch_norm
        self.head_name = "classifier" if arch == "vgg16" else "layer6"
        if arch == "vgg16":
            self.num_features = 1024
            self.features = _vgg16_layers()
        else:
            self.num_features = self._build_resnet(
                RESNET_STAGES[arch], BasicBlock if arch == "resnet18" else Bottleneck
            )
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and name not in VGG16_FC6_FC7:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # After the loop above, which must not reach the head.
        self.add_module(self.head_name, DilatedHead(self.num_features, num_classes, head_dilations))
        self.train()

    def _build_resnet(self, depths: Sequence[int], block: type["BasicBlock"] | type["Bottleneck"]) -> int:
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=True)
        channels, strides, dilations = 64, (1, 2, 1, 1), (1, 1, 2, 4)
        for index, (depth, stride, dilation) in enumerate(zip(depths, strides, dilations, strict=True)):
            width = 64 * 2**index
            # Unlike torchvision's dilated ResNets, the first block of a stage already has the stage's dilation.
            blocks = [block(channels, width, stride, dilation)]
            channels = width * block.expansion
            blocks += [block(channels, width, 1, dilation) for _ in range(depth - 1)]
            self.add_module(f"layer{index + 1}", Stage(*blocks))
        return channels

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
            features = self.features(images)
        else:
            track = self.batch_norm != "per-domain" or domain == "target"
            features = self.maxpool(self.relu(self.bn1(self.conv1(images), track)))
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
                features = stage(features, track)
        return features, self.head(features)

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

    def __init__(self, num_features: int, num_classes: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(num_features, num_classes, kernel_size=3, padding=d, dilation=d) for d in dilations
        )
        for convolution in self.conv2d_list:
            nn.init.normal_(convolution.weight, 0, 0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, K, h, w] of features [B, C, h, w]."""
        logits = self.conv2d_list[0](features)
        for convolution in self.conv2d_list[1:]:
            logits = logits + convolution(features)
        return logits

    def classify(self, vectors: Tensor) -> Tensor:
        """Logits [N, K] of vectors [N, C], each taken as a 1x1 map.

        On a 1x1 map every tap of a zero-padded 3x3 kernel but the centre reads padding, so the branches collapse into
        one matrix product.
        """
        weight = sum(convolution.weight[:, :, 1, 1] for convolution in self.conv2d_list)
        bias = sum(convolution.bias for convolution in self.conv2d_list)
        return F.linear(vectors, weight, bias)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with frozen affine parameters, whose running statistics a training batch can leave alone."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)

    def forward(self, x: Tensor, track: bool = True) -> Tensor:
        """x [B, C, H, W] normalised; track False: in training, without a trace in the running statistics."""
        if self.training and not track:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        # Not the parent's forward: it counts batches too, a launch a layer for a number that our momentum never needs.
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(x, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps)


class Stage(nn.Sequential):
    """Blocks one after the other, each told whether to track statistics."""

    def forward(self, x: Tensor, track: bool = True) -> Tensor:
        for block in self:
            x = block(x, track)
        return x


class Downsample(nn.Sequential):
    """The residual branch where a block changes the channels or the stride: a 1x1 convolution and a batch norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), BatchNorm(out_channels)
        )

    def forward(self, x: Tensor, track: bool = True) -> Tensor:
        return self[1](self[0](x), track)


class BasicBlock(nn.Module):
    """ResNet-18's block: two 3x3 convolutions, the stride on the first, both dilated."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride, dilation)
        self.bn1 = BatchNorm(width)
        self.conv2 = _conv3x3(width, width, 1, dilation)
        self.bn2 = BatchNorm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor, track: bool = True) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x, track)
        out = self.relu(self.bn1(self.conv1(x), track))
        out = self.bn2(self.conv2(out), track)
        return self.relu(out + residual)


class Bottleneck(nn.Module):
    """ResNet-50/101's block in caffe style: the stride on the first 1x1 convolution, the 3x3 one dilated."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, stride=stride, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = _conv3x3(width, width, 1, dilation)
        self.bn2 = BatchNorm(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = BatchNorm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: Tensor, track: bool = True) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x, track)
        out = self.relu(self.bn1(self.conv1(x), track))
        out = self.relu(self.bn2(self.conv2(out), track))
        out = self.bn3(self.conv3(out), track)
        return self.relu(out + residual)


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )


def _downsample(in_channels: int, out_channels: int, stride: int) -> Downsample | None:
    # The family also asks for one in every dilated stage, but there the channels change anyway: the same blocks.
    if stride == 1 and in_channels == out_channels:
        return None
    return Downsample(in_channels, out_channels, stride)


def _vgg16_layers() -> nn.Sequential:
    # Indices as in the family: conv5 at 23, 25, 27 because pool4 is gone; fc6 at 29 and fc7 at 31 because pool5 is.
    layers: list[nn.Module] = []
    channels = 3
    for width, depth, dilation, pooled in (
        (64, 2, 1, 1),
        (128, 2, 1, 1),
        (256, 3, 1, 1),
        (512, 3, 1, 0),
        (512, 3, 2, 0),
    ):
        for _ in range(depth):
            layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=dilation, dilation=dilation))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        if pooled:
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    for _ in ("fc6", "fc7"):
        layers += [nn.Conv2d(channels, 1024, kernel_size=3, padding=4, dilation=4), nn.ReLU(inplace=True)]
        channels = 1024
    return nn.Sequential(*layers)
