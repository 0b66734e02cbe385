"""Operations of the papers, as pure functions."""

from tightbox.ops.star_conv import StarSampling, star_conv2d, star_offsets

__all__ = ["StarSampling", "star_conv2d", "star_offsets"]
