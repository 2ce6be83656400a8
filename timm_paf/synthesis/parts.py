"""One part of a set of synthetic images: sampled, labelled and filtered."""
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from timm_paf._files import file_sha256
from timm_paf.data import ImageSource, LabelledImages, NearestImages, generator_for, to_unit_range
from timm_paf.engine.model import build_model
from timm_paf.models import load_weights, read_checkpoint
from timm_paf.synthesis.config import SyntheticConfig
from timm_paf.synthesis.diffusion import Diffusion, SynthesisFailed

__all__ = ['REASONS', 'Labeller', 'PartMaker', 'load_labeller', 'part_name']

REASONS = ('low_confidence', 'other_label', 'duplicate', 'near_duplicate', 'repeated', 'surplus')


@dataclasses.dataclass(frozen=True)
class Labeller:
    """A classifier that labels images.

    Args:
        model: (B, C, H, W) float32 in [0, 1] -> (B, K) logits; put into eval mode.
        device: Where it computes.
        record: Description for the manifest.
    """
    model: nn.Module
    device: torch.device
    record: dict[str, Any] = dataclasses.field(default_factory=dict)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels (B,) int64 of uint8 images, and confidence (B,) float32, the label's softmax probability."""
        logits = self.model.eval()(to_unit_range(images).to(self.device)).float()
        if not logits.isfinite().all():
            raise SynthesisFailed('The labeller gives NaN or infinite logits; check its checkpoint.')
        confidence, labels = logits.softmax(1).max(1)
        return labels.cpu(), confidence.cpu()


def load_labeller(config: SyntheticConfig, source: ImageSource, device: torch.device) -> Labeller | None:
    """Load the model of --labeller-checkpoint; None if there is none.

    Raises:
        ValueError: If the checkpoint or the model is not as expected.
        FileNotFoundError: If there is no such file.
    """
    path = config.labeller_checkpoint
    if path is None:
        return None
    name = config.labeller or read_checkpoint(path).get('arch')
    if not isinstance(name, str):
        raise ValueError(f'--labeller-checkpoint = {path}: it does not name its model; give --labeller.')
    model = build_model(name, num_classes=source.num_classes, in_chans=source.image_shape[0])
    record = {'model': name, 'weights': load_weights(model, path), 'sha256': file_sha256(path)}
    return Labeller(model.to(device), device, record)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartMaker:
    """Makes each part from the seed and the part's number alone, so that parts can be made in any order.

    An image is left out for the first reason that applies (`REASONS`): the labeller's confidence is below
    `min_confidence`; the labeller disagrees with the class given to a conditional generator; the image equals a
    training image; it is nearer to one than `min_distance` (see `NearestImages`); it repeats an image of the part; its
    class is full. With `balance`, the sizes of classes differ by at most one, over all parts; without, classes are as
    frequent as in the training set (conditional generator) or as sampled.

    Args:
        config: Sizes, seed and filters.
        generator: Source of images.
        labeller: Source of labels; None to trust a conditional generator.
        source: Training set.
        device: Where distances are computed.
    """
    config: SyntheticConfig
    generator: Diffusion
    labeller: Labeller | None
    source: LabelledImages
    device: torch.device

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-self.config.num_images // self.config.part_size)

    def plan(self) -> dict[str, Any]:
        """Everything that determines the images, as plain values for the manifest."""
        config, source = self.config, self.source
        return {
            'seed': config.seed, 'num_images': config.num_images, 'num_parts': self.num_parts,
            'part_size': config.part_size, 'batch_size': config.batch_size, 'num_classes': source.num_classes,
            'image_shape': list(source.image_shape),
            'source': {'name': source.name, 'images': len(source), 'sha256': source.fingerprint()},
            'generator': self.generator.record,
            'labeller': None if self.labeller is None else self.labeller.record,
            'filters': {name: getattr(config, name) for name in ('balance', 'min_confidence', 'min_distance')}}

    def make(
            self, part: int, progress: Callable[[int], None] = lambda kept: None,
    ) -> tuple[LabelledImages, dict[str, int], int]:
        """Make one part.

        Args:
            part: Its number, from 0.
            progress: Called with the number of images kept so far.

        Returns:
            The images in shuffled order, the number left out by reason, and the number sampled.

        Raises:
            SynthesisFailed: If too few of the sampled images can be kept.
        """
        config = self.config
        size = min(config.part_size, config.num_images - part * config.part_size)
        missing = self._wanted(part, size)
        nearest = NearestImages(self.source, device=self.device)
        rejected = dict.fromkeys(REASONS, 0)
        kept: dict[bytes, tuple[Tensor, int]] = {}
        drawn = batch = 0
        while len(kept) < size:
            if drawn >= config.max_draws * size + config.batch_size:
                reasons = ', '.join(f'{count} {reason}' for reason, count in rejected.items() if count)
                lacking = f'; class {missing.index(max(missing))} lacks {max(missing)}' if config.balance else ''
                raise SynthesisFailed(
                    f'{part_name(part)}: {len(kept)} of {size} images after sampling {drawn} (left out: {reasons})'
                    f'{lacking}. Lower --min-confidence or --min-distance, use --no-balance, raise --max-draws, or use '
                    'better weights.')
            generator = generator_for('synthesis', config.seed, part, batch)
            asked = self._ask(missing, size - len(kept), generator)
            images = self.generator.draw(config.batch_size if asked is None else len(asked), asked, generator)
            labels, good = self._judge(images, asked, nearest, rejected)
            for image, label in zip(images[good], labels[good].tolist(), strict=True):
                content = image.numpy().tobytes()
                if content in kept:
                    rejected['repeated'] += 1
                elif missing[label] < 1 or len(kept) == size:
                    rejected['surplus'] += 1
                else:
                    kept[content] = image, label
                    missing[label] -= 1
            drawn, batch = drawn + len(images), batch + 1
            progress(len(kept))
        order = torch.randperm(size, generator=generator_for('synthesis', config.seed, part, 'order'))
        stacked = torch.stack([image for image, _ in kept.values()])[order]
        numbers = torch.tensor([label for _, label in kept.values()])[order]
        return LabelledImages(stacked, numbers, self.source.num_classes, part_name(part)), rejected, drawn

    def _wanted(self, part: int, size: int) -> list[int]:
        """Highest number of images per class."""
        classes = self.source.num_classes
        if not self.config.balance:
            return [size] * classes
        # image i of the whole set is of class i mod K, which balances each part and the whole set
        first = part * self.config.part_size
        return torch.bincount(torch.arange(first, first + size) % classes, minlength=classes).tolist()

    def _ask(self, missing: list[int], count: int, generator: torch.Generator) -> Tensor | None:
        """Classes for the next batch of a conditional generator: those that are missing."""
        if not self.generator.conditional:
            return None
        count = min(self.config.batch_size, count)
        if not self.config.balance:
            return self.source.take(torch.randint(len(self.source), (count,), generator=generator))[1].cpu()
        pool = torch.repeat_interleave(torch.arange(len(missing)), torch.tensor(missing))
        return pool[torch.randperm(len(pool), generator=generator)[:count]]

    def _judge(
            self, images: Tensor, asked: Tensor | None, nearest: NearestImages, rejected: dict[str, int],
    ) -> tuple[Tensor, Tensor]:
        """Labels (B,) of a batch, and which images pass the filters (B,) bool; counts the others in `rejected`."""
        distance, _ = nearest(images)
        checks = {'duplicate': distance == 0, 'near_duplicate': distance < self.config.min_distance}
        labels = asked
        if self.labeller is not None:
            labels, confidence = self.labeller(images)
            disagrees = torch.zeros_like(labels, dtype=torch.bool) if asked is None else labels != asked
            checks = {'low_confidence': confidence < self.config.min_confidence, 'other_label': disagrees, **checks}
        assert labels is not None
        good = torch.ones(len(images), dtype=torch.bool)
        for reason, bad in checks.items():
            rejected[reason] += int((good & bad).sum())
            good &= ~bad
        return labels, good


def part_name(part: int) -> str:
    """File name of a part."""
    return f'part-{part:05}.npz'
