"""Synthetic images in parts, with a manifest: sampled, labelled, filtered, and written by several processes."""
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf._files import file_sha256, write_text
from timm_paf._versions import library_versions
from timm_paf.data import ImageSource, LabelledImages, class_names, read_manifest, save_archive, to_unit_range
from timm_paf.data.manifest import FORMAT, MANIFEST_NAME
from timm_paf.data.order import generator_for
from timm_paf.data.synthetic import distance_to_nearest
from timm_paf.engine.classes import names_difference
from timm_paf.engine.model import build_model
from timm_paf.engine.normalization import load_network
from timm_paf.engine.shared_config import EvaluationConfig
from timm_paf.models import read_checkpoint
from timm_paf.synthesis.config import SyntheticConfig, first_difference
from timm_paf.synthesis.diffusion import Diffusion, SynthesisFailed

__all__ = ['REASONS', 'Labeller', 'PartMaker', 'check_folder', 'load_labeller']

_logger = logging.getLogger(__name__)
REASONS = ('low_confidence', 'other_label', 'duplicate', 'near_duplicate', 'repeated', 'surplus')


class Labeller(NamedTuple):
    """A classifier (B, C, H, W) float32 in [0, 1] -> (B, K) logits, and its description for the manifest.

    `table[i]`, (K,) int64, is the number that the training set gives to class i of the classifier; None if it is i.
    """
    model: nn.Module
    record: dict[str, Any]
    table: Tensor | None = None


def load_labeller(config: SyntheticConfig, source: ImageSource, device: torch.device) -> Labeller | None:
    """Load the model of --labeller-checkpoint; None if there is none. Raises ValueError if it is not as expected."""
    path = config.labeller_checkpoint
    if path is None:
        return None
    checkpoint = read_checkpoint(path)
    name, args = config.labeller or checkpoint.get('arch'), checkpoint.get('args')
    if not isinstance(name, str):
        raise ValueError(f'--labeller-checkpoint = {path}: it does not name its model; give --labeller.')
    names, own = (args.get('class_names') if isinstance(args, dict) else None), class_names(source)
    table = None
    if names and own and list(names) != list(own):
        if sorted(names) != sorted(own):
            raise ValueError(
                f'--labeller-checkpoint = {path}: its classes differ from those of {source.name} '
                f'({names_difference(own, names)}); give a model of the same classes.')
        table = torch.tensor([own.index(name) for name in names])
    loaded = load_network(
        build_model(name, num_classes=source.num_classes, in_chans=source.image_shape[0]), path, EvaluationConfig(),
        name=name)
    if loaded.warning:
        _logger.warning(loaded.warning)
    record = {'model': name, 'weights': loaded.weights, 'sha256': file_sha256(path)}
    return Labeller(loaded.model.to(device).eval(), record, table)


def check_folder(path: Path, plan: Mapping[str, Any] | None) -> None:
    """Raise ValueError unless a folder is new, or was begun with this `PartMaker.plan` (None without a generator)."""
    if (path / MANIFEST_NAME).exists():
        begun = read_manifest(path)
        difference = 'a generator that is missing' if plan is None else first_difference(
            plan, {key: begun.get(key) for key in plan})
        if difference:
            raise ValueError(
                f'{path} was started with other settings: {difference}; use those settings or another --output.')
    elif others := sorted(path.glob('part-*')):
        raise ValueError(f'{path} holds {others[0].name} but no {MANIFEST_NAME}; give another --output.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartMaker:
    """Makes each part from the seed and the part's number alone, so that parts can be made in any order.

    An image is left out for the first reason that applies (`REASONS`): the labeller's confidence is below
    `min_confidence`; the labeller disagrees with the class given to a conditional generator; the image equals a
    training image; it is nearer to one than `min_distance` (see `distance_to_nearest`); it repeats an image of the
    part; its class is full. With `balance`, the sizes of classes differ by at most one, over all parts; without,
    classes are as frequent as in the training set (conditional generator) or as sampled.

    Args:
        config: Sizes, seed and filters.
        generator: Source of images; labels and distances are computed on its device.
        labeller: Source of labels; None to trust a conditional generator.
        source: Training set.
    """
    config: SyntheticConfig
    generator: Diffusion
    labeller: Labeller | None
    source: LabelledImages

    def plan(self) -> dict[str, Any]:
        """Everything that determines the images, as plain values for the manifest."""
        config, source = self.config, self.source
        return {
            'seed': config.seed, 'num_images': config.num_images,
            'num_parts': -(-config.num_images // config.part_size), 'part_size': config.part_size,
            'batch_size': config.batch_size, 'num_classes': source.num_classes, 'image_shape': list(source.image_shape),
            **({} if source.class_names is None else {'class_names': list(source.class_names)}),
            'source': {'name': source.name, 'images': len(source), 'sha256': source.fingerprint()},
            'generator': self.generator.record, 'labeller': self.labeller and self.labeller.record,
            'filters': {name: getattr(config, name) for name in ('balance', 'min_confidence', 'min_distance')}}

    def fill(
            self, path: Path, processes: Processes, *, progress: Callable[[int], None] = lambda done: None,
            report: Callable[[dict[str, Any]], None] = lambda record: None) -> dict[str, Any]:
        """Make the parts that are missing in a folder (see `check_folder`) and write the manifest.

        Process r of W makes the parts r, r + W, r + 2W, … It calls `progress` with the number of images that it has
        finished, and `report` with the record of each part that it has made. Returns the manifest (see
        `read_manifest`). Raises as `make`, or OSError.
        """
        path.mkdir(exist_ok=True)
        plan, records, done = self.plan(), [], 0
        if not (path / MANIFEST_NAME).exists():
            _write_json(path / MANIFEST_NAME, _manifest(plan, []))
        with processes.patient() as group:
            for part in range(processes.rank, plan['num_parts'], processes.world_size):
                record = _finished(path / f'part-{part:05}.npz')
                if record is None:
                    record = _write(path, *self.make(part, lambda kept: progress(done + kept)))  # noqa: B023
                    report(record)
                records.append(record)
                done += record['images']
                progress(done)
            records = [record for each in group.all_gather_object(records) for record in each]
        manifest = _manifest(plan, sorted(records, key=lambda record: record['file']))
        if processes.is_primary:
            _write_json(path / MANIFEST_NAME, manifest)
        return manifest

    def make(
            self, part: int, progress: Callable[[int], None] = lambda kept: None,
    ) -> tuple[LabelledImages, dict[str, int], int]:
        """Make a part by its number; return shuffled images, the number left out by reason, and the number sampled.

        `progress` is called with the number of images kept so far. Raises SynthesisFailed if too few can be kept.
        """
        config, classes, first = self.config, self.source.num_classes, part * self.config.part_size
        size, name = min(config.part_size, config.num_images - first), f'part-{part:05}.npz'
        # image i of the whole set is of class i mod K, which balances each part and the whole set
        missing = [size] * classes if not config.balance else torch.bincount(
            torch.arange(first, first + size) % classes, minlength=classes).tolist()
        rejected = dict.fromkeys(REASONS, 0)
        kept: dict[bytes, tuple[Tensor, int]] = {}
        drawn = batch = 0
        while len(kept) < size:
            if drawn >= config.max_draws * size + config.batch_size:
                reasons = ', '.join(f'{count} {reason}' for reason, count in rejected.items() if count)
                lacking = f'; class {missing.index(max(missing))} lacks {max(missing)}' if config.balance else ''
                raise SynthesisFailed(
                    f'{name}: {len(kept)} of {size} images after sampling {drawn} (left out: {reasons}){lacking}; '
                    'lower --min-confidence or --min-distance, give --no-balance, more --max-draws or better weights.')
            generator = generator_for('synthesis', config.seed, part, batch)
            asked = self._choose_classes(missing, min(config.batch_size, size - len(kept)), generator)
            images = self.generator.draw(config.batch_size if asked is None else len(asked), asked, generator)
            labels, good = self._filter(images, asked, rejected)
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
        pixels, numbers = zip(*kept.values(), strict=True)
        data = LabelledImages(
            torch.stack(pixels)[order], torch.tensor(numbers)[order], classes, name, self.source.class_names)
        return data, rejected, drawn

    def _choose_classes(self, missing: list[int], count: int, generator: torch.Generator) -> Tensor | None:
        """Classes for the next batch of a conditional generator: those that are missing."""
        if not self.generator.conditional:
            return None
        if not self.config.balance:
            return self.source.labels[torch.randint(len(self.source), (count,), generator=generator)].cpu()
        pool = torch.repeat_interleave(torch.arange(len(missing)), torch.tensor(missing))
        return pool[torch.randperm(len(pool), generator=generator)[:count]]

    @torch.inference_mode()
    def _filter(self, images: Tensor, asked: Tensor | None, rejected: dict[str, int]) -> tuple[Tensor, Tensor]:
        """Labels (B,) of a batch, and which images pass the filters (B,) bool; counts the others in `rejected`."""
        distance = distance_to_nearest(images, self.source, device=self.generator.device)
        checks = {'duplicate': distance == 0, 'near_duplicate': distance < self.config.min_distance}
        labels = asked
        if self.labeller is not None:
            logits = self.labeller.model(to_unit_range(images).to(self.generator.device)).float()
            if not logits.isfinite().all():
                raise SynthesisFailed('the model of --labeller-checkpoint gives NaN or infinite logits; check it.')
            confidence, labels = (values.cpu() for values in logits.softmax(1).max(1))
            labels = labels if self.labeller.table is None else self.labeller.table[labels]
            checks = {
                'low_confidence': confidence < self.config.min_confidence,
                'other_label': labels != (labels if asked is None else asked), **checks}
        assert labels is not None
        good = torch.ones(len(images), dtype=torch.bool)
        for reason, bad in checks.items():
            rejected[reason] += int((good & bad).sum())
            good &= ~bad
        return labels, good


def _finished(path: Path) -> dict[str, Any] | None:
    """Record of a part if it is complete and intact, else None."""
    try:
        record = json.loads(path.with_suffix('.json').read_text())
        return record if record['file'] == path.name and file_sha256(path) == record['sha256'] else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(folder: Path, data: LabelledImages, rejected: dict[str, int], drawn: int) -> dict[str, Any]:
    """Write a part, then its record, which makes it a finished part."""
    path = folder / data.name
    for partial in folder.glob(f'.{path.stem}.*.tmp'):  # of a process that was killed while it wrote this part
        partial.unlink(missing_ok=True)
    save_archive(path, data)
    record = {
        'file': path.name, 'images': len(data),
        'per_class': data.labels.bincount(minlength=data.num_classes).tolist(), 'drawn': drawn, 'rejected': rejected,
        'sha256': file_sha256(path), 'versions': library_versions('diffusers')}
    _write_json(path.with_suffix('.json'), record)
    return record


def _manifest(plan: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    counts = {
        'images': sum(part['images'] for part in parts),
        'per_class': [sum(column) for column in zip(*(part['per_class'] for part in parts), strict=True)],
        'drawn': sum(part['drawn'] for part in parts),
        'rejected': {reason: sum(part['rejected'][reason] for part in parts) for reason in REASONS if parts}}
    return {'format': FORMAT, 'complete': len(parts) == plan['num_parts'], **plan, 'counts': counts, 'parts': parts}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(json.dumps(content, indent=1, allow_nan=False) + '\n', path)
