"""Times the star convolution against torchvision's deform_conv2d, which it equals, and a plain 3×3 convolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import fastest_interleaved, table_options, write_table
from machine import measured
from torch import Tensor
from torch.nn.functional import conv2d
from torchvision.ops import deform_conv2d

from tightbox.ops.star_conv import StarSampling, star_conv2d, star_offsets

MAPS = [(1, 64, 64), (1, 100, 168), (2, 40, 40)]  # batch, height, width
CHANNELS = [256, 64]
STRIDE = 8.0
REACH = 64.0  # distances are uniform up to this many pixels, eight steps of the map

HEADER = (
    "| map | channels | pass | conv2d, ms | deform_conv2d, ms | star_conv2d, ms "
    "| star is faster than deform by | star takes, of conv2d |\n|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser, options = table_options(__doc__, repeats=5)
    lines = [measured(), "", HEADER]
    print("\n".join(lines), flush=True)
    for channels in CHANNELS:
        for batch, height, width in MAPS:
            for backward in (False, True):
                plain, deform, star = time_row(batch, channels, height, width, backward, options.repeats)
                lines.append(
                    f"| {batch}×{height}×{width} | {channels} | {'forward + backward' if backward else 'forward'} "
                    f"| {1e3 * plain:.1f} | {1e3 * deform:.1f} | {1e3 * star:.1f} "
                    f"| {deform / star:.1f}× | {star / plain:.2f}× |"
                )
                print(lines[-1], flush=True)
    write_table(options.markdown, lines, parser)


def time_row(batch: int, channels: int, height: int, width: int, backward: bool, repeats: int) -> list[float]:
    """Seconds of conv2d, deform_conv2d and star_conv2d, each in the memory format it likes best."""
    torch.manual_seed(0)
    features = torch.randn(batch, channels, height, width)
    weight = torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)
    distances = (REACH * torch.rand(batch, 4, height, width)).requires_grad_(backward)

    def step(layout: torch.memory_format, operator: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        leaves = [tensor.to(memory_format=layout).detach().requires_grad_(backward) for tensor in (features, weight)]
        cotangent = features.to(memory_format=layout)

        def run() -> None:
            output = operator(*leaves)
            if backward:
                for leaf in (*leaves, distances):
                    leaf.grad = None
                torch.autograd.backward(output, cotangent)

        return run

    def deform(x: Tensor, w: Tensor) -> Tensor:
        output: Tensor = deform_conv2d(x, star_offsets(distances, STRIDE), w, padding=1)
        return output

    steps = [
        step(torch.channels_last, lambda x, w: conv2d(x, w, padding=1)),
        step(torch.contiguous_format, deform),
        step(torch.channels_last, lambda x, w: star_conv2d(x, StarSampling(distances, STRIDE), w)),
    ]
    return fastest_interleaved(steps, repeats)


if __name__ == "__main__":
    main()
