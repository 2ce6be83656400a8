"""Input normalisation: as the first layer of a network, and as a wrapper of a model of normalised images."""
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['InputNormalization', 'Normalized', 'is_identity', 'normalization_of']


def is_identity(mean: Iterable[Any], std: Iterable[Any]) -> bool:
    """Whether (x - mean) / std is x: zeros and ones are no normalisation."""
    return not any(mean) and all(value == 1 for value in std)


def normalization_of(model: nn.Module) -> 'InputNormalization | None':
    """What normalises the input of a model: its first layer, or `Normalized` around it; None if nothing does."""
    layer = model if isinstance(model, Normalized) else getattr(model, 'normalize', None)
    return layer if isinstance(layer, InputNormalization) else None


class InputNormalization(nn.Module):
    """(x - mean) / std per channel: the first layer of a network that takes pixels in [0, 1].

    Args:
        mean: One number per channel, in units of [0, 1].
        std: As mean; above 0.
        device: Device of the two buffers.
        dtype: Their dtype.

    Raises:
        ValueError: If the lengths differ, a number is not finite, a std is not above 0, or a mean is not in units
            of [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
            self,
            mean: Sequence[float],
            std: Sequence[float],
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        means, stds = (torch.as_tensor(values, dtype=torch.float64, device='cpu').flatten() for values in (mean, std))
        if len(means) != len(stds) or not len(means):
            raise ValueError(f'mean = {mean}, std = {std}: expected one number per channel in each.')
        if not (means.isfinite().all() and stds.isfinite().all() and (stds > 0).all()):
            raise ValueError(f'mean = {mean}, std = {std}: expected finite numbers, and std above 0.')
        if means.abs().max() > 1.5:
            raise ValueError(f'mean = {mean}: expected units of [0, 1]; divide mean and std by 255.')
        for name, values in (('mean', means), ('std', stds)):
            self.register_buffer(name, torch.tensor(values.tolist(), device=device, dtype=dtype).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        if self.mean.is_meta:
            return f'{len(self.mean)} channels'
        return ', '.join(
            f'{name}=({", ".join(f"{value:.4g}" for value in getattr(self, name).flatten().tolist())})'
            for name in ('mean', 'std'))


class Normalized(InputNormalization):
    """model((x - mean) / std): makes a model of normalised images a model of pixels in [0, 1].

    The radius of an attack is in units of [0, 1]; on normalised images it would differ per channel. `mean` and `std`
    are buffers of shape (C,) and are saved with the weights.

    Args:
        model: Takes normalised images (B, C, …).
        mean: One number per channel, or one for all, in units of [0, 1].
        std: As mean; above 0.

    Raises:
        ValueError: As `InputNormalization`, and if the model normalises its input already.

    Example:
        >>> model = Normalized.of_timm(timm.create_model('resnet50', pretrained=True))
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        if (first := normalization_of(model)) is not None:
            raise ValueError(f'the model normalises already: {first.extra_repr()}; use it as it is.')
        device = next((p.device for p in model.parameters()), None)
        super().__init__(mean, std, device=device, dtype=torch.float32)
        self.model = model
        self.mean, self.std = self.mean.flatten(), self.std.flatten()

    @classmethod
    def of_timm(cls, model: nn.Module) -> 'Normalized':
        """Normalise with the mean and std of a timm model's `pretrained_cfg`.

        Raises:
            ValueError: If the model has none.
        """
        cfg: Any = getattr(model, 'pretrained_cfg', None) or {}
        mean, std = cfg.get('mean'), cfg.get('std')
        if mean is None or std is None:
            raise ValueError(
                f"{type(model).__name__} has no pretrained_cfg with 'mean' and 'std'; pass them: "
                'Normalized(model, mean, std).')
        return cls(model, mean, std)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or len(self.mean) not in (1, x.shape[1]):
            raise ValueError(
                f'images of shape {tuple(x.shape)} for {len(self.mean)} means; expected (B, {len(self.mean)}, …).')
        mean, std = (v.to(x.dtype).view(-1, *[1] * (x.dim() - 2)) for v in (self.mean, self.std))
        return self.model((x - mean) / std)
