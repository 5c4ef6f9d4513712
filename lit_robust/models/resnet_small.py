"""A small residual network for images of 32 to 64 px."""

from collections.abc import Sequence

from torch import Tensor, nn


class SmallResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks that halve the image and double the width, mean pool, one linear layer.

    The CIFAR form of He et al. 2016 (section 4.2) with wider later stages; the blocks are torchvision's.

    Args:
        num_classes: number of logits.
        widths: channels of each stage; every stage but the first halves height and width.
        blocks: basic blocks a stage.
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = (32, 64, 128, 256), blocks: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        stages = [
            _stage(before, width, blocks, stride=1 if number == 0 else 2)
            for number, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        ]
        self.layers = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of normalised images ``[B, 3, H, W]``."""
        hidden = self.layers(self.relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.fc(self.avgpool(hidden).flatten(1))
        return logits


def _stage(before: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock  # It loads all of torchvision's networks.

    shortcut = None
    if stride != 1 or before != width:
        shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    first = BasicBlock(before, width, stride, shortcut)
    return nn.Sequential(first, *[BasicBlock(width, width) for _ in range(blocks - 1)])


def resnet_small(num_classes: int) -> SmallResNet:
    """Four stages of one block, widths 32 to 256: 1.2 million parameters."""
    return SmallResNet(num_classes, widths=(32, 64, 128, 256), blocks=1)


def resnet_tiny(num_classes: int) -> SmallResNet:
    """Four stages of one block, widths 16 to 128: 0.3 million parameters, for the demo and for tests."""
    return SmallResNet(num_classes, widths=(16, 32, 64, 128), blocks=1)
