"""Synthetic images in parts: drawn, labelled, filtered and written so that a stopped run goes on where it was."""
import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from timm_paf.data import ImageSource, LabelledImages, generator_for, save_archive, to_unit_range
from timm_paf.data.manifest import (
    MANIFEST_NAME,
    Manifest,
    PartRecord,
    file_sha256,
    read_manifest,
    read_part_record,
    write_json,
)
from timm_paf.data.synthetic import NearestImages

__all__ = [
    'Generator', 'Labeller', 'PartMaker', 'PartsFailed', 'begin', 'check_folder', 'finish', 'finished_part',
    'first_difference', 'part_name', 'write_part',
]

REASONS = ('low_confidence', 'other_label', 'duplicate', 'near_duplicate', 'repeated', 'surplus')


class PartsFailed(Exception):
    """No more images can be made with these settings."""


class Generator(Protocol):
    """What draws images; `Diffusion` is one."""

    conditional: bool

    def draw(self, count: int, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """(count, C, H, W) uint8 on the CPU, of classes `labels` (count,) if conditional; the arguments decide it."""
        ...


@dataclasses.dataclass(frozen=True)
class Labeller:
    """A classifier of pixels in [0, 1] that gives labels and says how sure it is.

    Args:
        model: (B, C, H, W) float32 -> (B, K) logits; put into eval mode.
        device: Where it computes.
    """

    model: nn.Module
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (B,) int64 and confidence (B,) float32, the softmax probability of the label, of uint8 images."""
        logits = self.model.eval()(to_unit_range(images).to(self.device)).float()
        if not logits.isfinite().all():
            raise PartsFailed('the labeller gave NaN or infinite logits; is its checkpoint intact?')
        confidence, labels = logits.softmax(1).max(1)
        return labels.cpu(), confidence.cpu()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartMaker:
    """Makes the images of one part from the seed and the part's number alone, so parts can be made in any order.

    An image is left out, for the first of these reasons that applies (`REASONS`): the labeller is less sure than
    `min_confidence`; the labeller says another class than was asked of a conditional generator; it equals a training
    image; it is nearer to one than `min_distance`; it equals an image that the part has; its class is full.

    Args:
        generator: What draws.
        labeller: What labels; None to trust a conditional generator.
        source: The training set: for distances, and for class frequencies when not balanced.
        num_images: Images of all parts.
        part_size: Images a part; the last may hold fewer.
        batch_size: Images drawn at a time.
        seed: Any integer.
        balance: Equal classes, counts of the whole differ by at most one; otherwise as the training set has them
            (conditional generator) or as they come.
        min_confidence: 0 to 1.
        min_distance: Root mean square of pixel differences in [0, 1], see `NearestImages`.
        max_draws: Images drawn for each one kept before the part is given up.
        device: Where distances are computed.
    """

    generator: Generator
    labeller: Labeller | None
    source: ImageSource
    num_images: int
    part_size: int
    batch_size: int
    seed: int
    balance: bool
    min_confidence: float
    min_distance: float
    max_draws: int
    device: torch.device

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-self.num_images // self.part_size)

    def make(
            self, part: int, progress: Callable[[int], None] = lambda kept: None,
    ) -> tuple[LabelledImages, dict[str, int], int]:
        """Make part number `part`; returns its images in shuffled order, numbers left out by reason, number drawn.

        Raises:
            PartsFailed: If too few of the images drawn can be kept.
        """
        size = min(self.part_size, self.num_images - part * self.part_size)
        missing = self._wanted(part, size)
        nearest = NearestImages(self.source, device=self.device)
        rejected = dict.fromkeys(REASONS, 0)
        images, labels = [], []
        seen: set[bytes] = set()
        drawn = kept = batch = 0
        while kept < size:
            if drawn >= self.max_draws * size + self.batch_size:
                raise PartsFailed(self._given_up(part, drawn, kept, size, missing, rejected))
            generator = generator_for('synthesis', self.seed, part, batch)
            asked = self._ask(missing, size - kept, generator)
            count = self.batch_size if asked is None else len(asked)
            candidates = self.generator.draw(count, asked, generator)
            given, good = self._judge(candidates, asked, nearest, rejected)
            for index in good.nonzero().flatten().tolist():
                label, content = int(given[index]), candidates[index].numpy().tobytes()
                if content in seen:
                    rejected['repeated'] += 1
                elif missing[label] < 1 or kept == size:
                    rejected['surplus'] += 1
                else:
                    seen.add(content)
                    missing[label] -= 1
                    kept += 1
                    images.append(candidates[index])
                    labels.append(label)
            drawn, batch = drawn + count, batch + 1
            progress(kept)
        order = torch.randperm(size, generator=generator_for('synthesis', self.seed, part, 'order'))
        data = LabelledImages(
            torch.stack(images)[order], torch.tensor(labels)[order], self.source.num_classes, part_name(part))
        return data, rejected, drawn

    def _wanted(self, part: int, size: int) -> list[int]:
        """How many of each class the part takes at most."""
        classes = self.source.num_classes
        if not self.balance:
            return [size] * classes
        # image i of the whole is of class i mod K, so neither the parts nor the whole are off by more than one
        first = part * self.part_size
        return torch.bincount(torch.arange(first, first + size) % classes, minlength=classes).tolist()

    def _ask(self, missing: list[int], count: int, generator: torch.Generator) -> Tensor | None:
        """Classes to ask a conditional generator for: those that are missing, as many as are missing."""
        if not self.generator.conditional:
            return None
        count = min(self.batch_size, count)
        if not self.balance:
            _, labels = self.source.take(torch.randint(len(self.source), (count,), generator=generator))
            return labels.cpu()
        pool = torch.repeat_interleave(torch.arange(len(missing)), torch.tensor(missing))
        return pool[torch.randperm(len(pool), generator=generator)[:count]]

    def _judge(
            self, images: Tensor, asked: Tensor | None, nearest: NearestImages, rejected: dict[str, int],
    ) -> tuple[Tensor, Tensor]:
        """Labels (B,) of a batch, and which of it (B,) bool may be kept; counts the others."""
        distance, _ = nearest(images)
        checks = {'duplicate': distance == 0, 'near_duplicate': distance < self.min_distance}
        labels = asked
        if self.labeller is not None:
            labels, confidence = self.labeller(images)
            disagrees = labels != asked if asked is not None else torch.zeros(len(images), dtype=torch.bool)
            checks = {'low_confidence': confidence < self.min_confidence, 'other_label': disagrees, **checks}
        assert labels is not None
        good = torch.ones(len(images), dtype=torch.bool)
        for reason, bad in checks.items():
            rejected[reason] += int((good & bad).sum())
            good &= ~bad
        return labels, good

    def _given_up(
            self, part: int, drawn: int, kept: int, size: int, missing: list[int], rejected: Mapping[str, int],
    ) -> str:
        reasons = ', '.join(f'{count} {reason}' for reason, count in rejected.items() if count)
        lacking = f'; class {missing.index(max(missing))} lacks {max(missing)}' if self.balance else ''
        return (
            f'{part_name(part)}: of {drawn} images drawn {kept} of {size} could be kept ({reasons}){lacking}. '
            'Lower --min-confidence or --min-distance, give --no-balance or more --max-draws, or better weights.')


def part_name(part: int) -> str:
    """File name of a part."""
    return f'part-{part:05}.npz'


def check_folder(folder: Path, plan: Mapping[str, Any] | None) -> None:
    """Make sure that a folder is free for a plan, or was begun with it.

    Args:
        folder: Where parts will be written.
        plan: None if it is not known yet; the folder must not hold parts then.

    Raises:
        ValueError: If the folder holds something else.
    """
    if not folder.is_dir():
        return
    if (folder / MANIFEST_NAME).exists():
        difference = first_difference(plan, read_manifest(folder).plan) if plan else 'a generator that is gone'
        if difference:
            raise ValueError(f'{folder} was begun with {difference}; give the same settings, or another --output.')
    elif others := sorted(path.name for path in folder.iterdir() if path.name.startswith('part-')):
        raise ValueError(f'{folder} holds {others[0]} but no {MANIFEST_NAME}; give another --output.')


def begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Write the manifest of no parts, unless the plan was begun already."""
    if not (folder / MANIFEST_NAME).exists():
        Manifest(plan=plan).save(folder)


def finished_part(folder: Path, part: int) -> PartRecord | None:
    """The record of a part if it is there and intact; whatever is left of an interrupted one does not count."""
    path = folder / part_name(part)
    try:
        record = read_part_record(path.with_suffix('.json'))
        return record if record.file == path.name and file_sha256(path) == record.sha256 else None
    except (FileNotFoundError, ValueError):
        return None


def write_part(folder: Path, part: int, made: tuple[LabelledImages, dict[str, int], int]) -> PartRecord:
    """Write a part, then its record: with the record the part is finished."""
    data, rejected, drawn = made
    path = folder / part_name(part)
    for left_over in folder.glob(f'.{path.stem}.*.tmp'):  # of a process that was killed while it wrote this part
        left_over.unlink(missing_ok=True)
    save_archive(path, data)
    record = PartRecord(
        file=path.name, images=len(data), drawn=drawn, rejected=rejected, sha256=file_sha256(path), versions=versions(),
        per_class=tuple(torch.bincount(data.labels, minlength=data.num_classes).tolist()))
    write_json(path.with_suffix('.json'), dataclasses.asdict(record))
    return record


def finish(folder: Path, plan: Mapping[str, Any]) -> Manifest:
    """Write the manifest over all parts that are finished; the process that is last sees all of them.

    Raises:
        PartsFailed: If the record of a part, another process's, cannot be read.
    """
    paths = [(folder / part_name(part)).with_suffix('.json') for part in range(plan['num_parts'])]
    saved = -1
    # processes save over each other: who saved last looks once more for records that came in the meantime
    while len(there := [path for path in paths if path.exists()]) > saved:
        try:
            manifest = Manifest(plan=plan, parts=tuple(map(read_part_record, there)))
        except ValueError as error:
            raise PartsFailed(f'{error}.') from error
        manifest.save(folder)
        saved = len(there)
    return manifest


def versions() -> dict[str, str]:
    """What the images depend on besides the plan."""
    names = ('torch', 'diffusers', 'numpy', 'timm', 'timm-paf')
    found = {'python': platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = 'not installed'
    return found


def first_difference(new: Mapping[str, Any], old: Mapping[str, Any], prefix: str = '') -> str:
    """The first setting that differs between two plans, in words; empty if none does."""
    for key in [*new, *(key for key in old if key not in new)]:
        ours, theirs = new.get(key), old.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            if found := first_difference(ours, theirs, f'{prefix}{key}.'):
                return found
        elif ours != theirs:
            return f'{prefix}{key} = {theirs!r}, now it is {ours!r}'
    return ''
