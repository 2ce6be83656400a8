"""Wide residual networks with pre-activation for small images.

Zagoruyko and Komodakis, arXiv 1605.07146; WRN-d-k has (d - 4)/6 blocks per stage and k times the widths 16, 32, 64.
"""
from typing import Any

from timm_paf.models._preact import PreActNet
from timm_paf.models._variants import pixel_cfg, register_variants, variant_cfgs

__all__ = ['WideResNet']

_ARCHITECTURES = {
    f'wrn{depth}_{k}': dict(depth=depth, widen_factor=k)
    for depth, k in ((10, 2), (28, 4), (28, 10), (34, 10), (34, 20), (70, 16))}


class WideResNet(PreActNet):
    """WRN-depth-widen_factor for inputs (B, in_chans, H, W) of any size.

    Args:
        depth: 6 n + 4 with n blocks in each of the three stages.
        widen_factor: Factor on the widths 16, 32 and 64.
        **kwargs: As `PreActResNet`, with `output_stride` 4, 2 or 1.

    Raises:
        ValueError: If depth is not 6 n + 4, or an argument is outside its range.
    """

    num_feature_levels = 4

    def __init__(self, depth: int = 28, widen_factor: int = 10, **kwargs: Any) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f'depth = {depth}: expected 6 n + 4 with n >= 1, such as 10, 28, 34 or 70.')
        super().__init__(16, [width * widen_factor for width in (16, 32, 64)], 3 * [(depth - 4) // 6], **kwargs)


default_cfgs = variant_cfgs(_ARCHITECTURES, pixel_cfg('conv1', 'fc', pool_size=(8, 8)))
register_variants(WideResNet, _ARCHITECTURES, __name__)
