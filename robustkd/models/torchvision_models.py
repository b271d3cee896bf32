"""torchvision's ResNet-101, ResNeXt-50 32x4d, DenseNet-201 and VGG-19, with a stem for small images.

torchvision is imported when a network is built, not before: listing and describing work without it, and where it does not load
(it must be the build that belongs to torch) only these four are missing. Networks start from fresh weights; with ``stem: imagenet``
and 3 channels their layers are torchvision's own, so that its checkpoints load (``external`` with ``weights``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from robustkd.contracts import Params, PluginError
from robustkd.lazy import F, nn, torch
from robustkd.models.image import GlobalMeanPool, ImageModel, ImageNetwork, ImageParams, conv3x3

if TYPE_CHECKING:
    from torch import Tensor

_BRANCH_ENDS = {"BasicBlock": "bn2", "Bottleneck": "bn3"}
"""Where the residual branch of torchvision's blocks ends."""


class TorchvisionParams(ImageParams):
    """Parameters of the torchvision architectures."""

    stem: Literal["imagenet", "small"] = Field(
        "imagenet",
        description="imagenet: torchvision's; small: a 3x3 convolution of stride 1 without pooling, for images of about 32 pixels",
    )


class VGGParams(ImageParams):
    stem: Literal["imagenet", "small"] = Field(
        "imagenet", description="imagenet: torchvision's three linear layers; small: one, after global mean pooling"
    )
    batch_norm: bool = Field(False, description="BatchNorm after each convolution, which training from scratch wants")


class TorchvisionNetwork(ImageNetwork):
    """A network of torchvision's behind the normalisation."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        for module in body.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # a forward hook sees what the layer returned
            if type(module).__name__ in _BRANCH_ENDS and module.downsample is None:
                module.branch_end = _BRANCH_ENDS[type(module).__name__]
        self.body = body

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


class DenseNetNetwork(TorchvisionNetwork):
    """torchvision's own ``forward`` applies the last ReLU in place to what ``features`` returned."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__(body)
        self.pool = GlobalMeanPool()

    def _logits(self, x: Tensor) -> Tensor:
        body: Any = self.body
        logits: Tensor = body.classifier(self.pool(F.relu(body.features(x))))
        return logits


class _Torchvision(ImageModel):
    """One of torchvision's builders, called without weights."""

    Params: ClassVar[type[Params]] = TorchvisionParams
    smallest: ClassVar[int] = 32
    builder: ClassVar[str]
    network: ClassVar[type[TorchvisionNetwork]] = TorchvisionNetwork

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        body = _builders(type(self).__name__, self.builder)(num_classes=num_classes)
        self._fit(body, channels, num_classes)
        return self.network(body)

    def _fit(self, body: Any, channels: int, num_classes: int) -> None:
        """Adapt the stem to the images."""
        raise NotImplementedError

    def _stem(self, original: nn.Conv2d, channels: int) -> nn.Conv2d:
        """The first convolution: torchvision's for another number of channels, or a 3x3 one of stride 1."""
        if self.params.stem == "imagenet" and channels == original.in_channels:
            return original
        if self.params.stem == "imagenet":
            stem = nn.Conv2d(channels, original.out_channels, 7, stride=2, padding=3, bias=False)
        else:
            stem = conv3x3(channels, original.out_channels, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        return stem


class _TorchvisionResNet(_Torchvision):
    def _fit(self, body: Any, channels: int, num_classes: int) -> None:
        body.conv1 = self._stem(body.conv1, channels)
        body.avgpool = GlobalMeanPool()
        if self.params.stem == "small":
            body.maxpool = nn.Identity()


class ResNet101(_TorchvisionResNet):
    """ResNet-101 with bottleneck blocks: 42.5 M parameters for 10 classes."""

    source: ClassVar[str] = "He et al., Deep residual learning for image recognition, CVPR 2016"
    builder: ClassVar[str] = "resnet101"


class ResNeXt50(_TorchvisionResNet):
    """ResNeXt-50 32x4d: 23 M parameters for 10 classes."""

    source: ClassVar[str] = "Xie et al., Aggregated residual transformations for deep neural networks, CVPR 2017"
    builder: ClassVar[str] = "resnext50_32x4d"


class DenseNet201(_Torchvision):
    """DenseNet-201: 18.1 M parameters for 10 classes."""

    source: ClassVar[str] = "Huang et al., Densely connected convolutional networks, CVPR 2017"
    builder: ClassVar[str] = "densenet201"
    network: ClassVar[type[TorchvisionNetwork]] = DenseNetNetwork

    def _fit(self, body: Any, channels: int, num_classes: int) -> None:
        body.features.conv0 = self._stem(body.features.conv0, channels)
        if self.params.stem == "small":
            body.features.pool0 = nn.Identity()


class VGG19(_Torchvision):
    """VGG-19: 20 M parameters for 10 classes with the small stem, 140 M with torchvision's linear layers."""

    Params: ClassVar[type[Params]] = VGGParams
    source: ClassVar[str] = (
        "Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition, ICLR 2015"
    )
    builder: ClassVar[str] = "vgg19"

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        build = _builders(type(self).__name__, self.builder + ("_bn" if self.params.batch_norm else ""))
        # Its 120 M weights of linear layers are not drawn where they would be thrown away.
        body = build(num_classes=num_classes) if self.params.stem == "imagenet" else _without_head(build, num_classes)
        if channels != 3:
            body.features[0] = conv3x3(channels, 64)
            nn.init.kaiming_normal_(body.features[0].weight, mode="fan_out", nonlinearity="relu")
        return TorchvisionNetwork(body)


def _without_head(build: Any, num_classes: int) -> Any:
    with torch.device("meta"):
        body = build(num_classes=num_classes, init_weights=False)
    body.avgpool, body.classifier = GlobalMeanPool(), nn.Linear(512, num_classes)
    body.features.to_empty(device="cpu")
    for module in body.features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return body


def _builders(who: str, name: str) -> Any:
    try:
        import torchvision.models
    except Exception as error:  # a build for another torch raises RuntimeError, not ImportError
        raise PluginError(
            f"{who} comes from torchvision, which cannot be imported: {type(error).__name__}: {error}",
            fix=f"install the torchvision that belongs to torch {torch.__version__}",
        ) from error
    return getattr(torchvision.models, name)
