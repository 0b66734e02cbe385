"""The small ResNet of the reference values, for the parity tests."""

from __future__ import annotations

from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from tightbox.models.backbone import Backbone
from tightbox.options import BackboneOptions


class TinyResNet50(Backbone):
    """ResNet-50 with 8 base channels, its stem and first stage frozen and its batch norms in evaluation mode."""

    def __init__(self) -> None:
        super().__init__(BackboneOptions(name="resnet50", pretrained=False, frozen_stages=1, frozen_norm=True))
        self.body = _Features(Bottleneck, (3, 4, 6, 3), channels=(8, 16, 32, 64))
        self.channels = [64, 128, 256]
        self.mean, self.std = self.mean * 0, self.std * 0 + 1  # the reference images are normalised already
        for name in ("conv1", "bn1", "layer1"):
            getattr(self.body, name).requires_grad_(False)


class _Features(ResNet):
    """timm's ResNet with a stem as narrow as its stages, giving C3 to C5."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        first = self.layer1[0]
        first.conv1 = nn.Conv2d(8, 8, 1, bias=False)
        first.downsample[0] = nn.Conv2d(8, 32, 1, bias=False)
        del self.fc
        self.feature_info = _Info(self.feature_info)

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.layer1(self.maxpool(self.act1(self.bn1(self.conv1(x)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c3, c4, self.layer4(c4)]


class _Info:
    def __init__(self, info: list[dict[str, object]]) -> None:
        self.info = info
