"""What a measurement holds beside clean accuracy and attacks: settings, checks before it starts, and the files."""
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from timm_paf._files import file_sha256
from timm_paf.attacks import PGD, ThreatModel, check_images
from timm_paf.data import LabelledImages
from timm_paf.data.files import whole_file
from timm_paf.engine.config import ENTRY
from timm_paf.engine.distributed import Processes
from timm_paf.evaluation import (
    Accuracy,
    CorruptionArchive,
    RobustnessReport,
    adversarial_examples,
    check_trust,
    corruption_accuracy,
    curve_radius,
    robustbench_info,
    robustbench_obstacles,
    robustness_curve,
)

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass
class Parts:
    """What is measured beside the attacks, opened and checked."""
    corruptions: CorruptionArchive | None
    trained_clean: Accuracy | None


def open_parts(
        config: Any,
        model: nn.Module,
        data: LabelledImages,
        *,
        device: torch.device,
        output: str | None,
) -> Parts:
    """Check everything that can be checked before the measurement starts.

    Args:
        config: A `ReportConfig` with the settings of the measurement.
        model: On the device.
        data: Images to measure on.
        device: Where the model is.
        output: Folder for the report.

    Raises:
        ValueError: If images, labels, logits or a setting are not as expected.
        FileExistsError: If a file would be overwritten.
        FileNotFoundError: If the folder of corruptions or a file in it is missing.
    """
    check_images(model, torch.as_tensor(data.images), torch.as_tensor(data.labels), device=device)
    if config.html and output is None:
        raise ValueError('--html is written beside report.json: give a folder with --output.')
    targets = [Path(output) / 'report.html'] if output and wants_page(config) else []
    targets += [Path(config.robustbench_json)] if config.robustbench_json else []
    for path in targets:
        if path.exists():
            raise FileExistsError(f'{path} is there already; choose another name, or remove it.')
    if config.robustbench_json:
        if config.autoattack == 'none':
            raise ValueError('--robustbench-json needs AutoAttack; expected --autoattack standard.')
        if not Path(config.robustbench_json).resolve().parent.is_dir():
            raise FileNotFoundError(f'--robustbench-json {config.robustbench_json}: there is no such folder.')
    norm = threat_of(config).norm
    for text in config.radii():
        curve_radius(text, label='--eps-curve', norm=norm)
    if len({curve_radius(text, norm=norm) for text in config.radii()}) < len(config.radii()):
        raise ValueError(f'--eps-curve = {",".join(config.radii())}: expected each radius once.')
    return Parts(_archive(config.corruptions, data), _trained_clean(Path(config.checkpoint), config))


def threat_of(config: Any) -> ThreatModel:
    """Norm and radius of the measurement."""
    threat = config.evaluation()['threat']
    assert isinstance(threat, ThreatModel)
    return threat


def complete(
        report: RobustnessReport,
        config: Any,
        parts: Parts,
        model: nn.Module,
        data: LabelledImages,
        *,
        processes: Processes,
        progress: Progress,
) -> RobustnessReport:
    """The report with everything else that was asked for; in the first process, those that share the work have a part.

    Args:
        report: Of the attacks.
        config: The settings.
        parts: What `open_parts` returned.
        model: On the device.
        data: Images to measure on.
        processes: Those of the run.
        progress: Called as progress(what, done, in all).
    """
    x, y, threat = torch.as_tensor(data.images), torch.as_tensor(data.labels), threat_of(config)
    alone: dict[str, Any] = dict(batch_size=config.eval_batch_size, device=processes.device)
    shared = dict(alone, rank=processes.rank, world_size=processes.world_size)
    added: dict[str, Any] = {}
    if config.radii():
        progress('curve over eps', 0, 1)
        added['curve'] = robustness_curve(
            model, x[:config.n_curve], y[:config.n_curve], eps=config.radii(), norm=threat.norm,
            steps=config.pgd_steps, seed=config.seed, **shared)
    if parts.corruptions is not None:
        added['corruptions'] = corruption_accuracy(model, parts.corruptions, progress=progress, **shared)
    processes.close()  # the rest is little, and for the first one
    if not processes.is_primary:
        return report
    if config.trust:
        added['trust'] = check_trust(
            model, x, y, threat=threat, n_trust=config.n_trust, clean=report.measurements['clean'].accuracy,
            trained_clean=parts.trained_clean, seed=config.seed, progress=progress, **alone)
    if wants_page(config):
        attack = PGD(eps=threat.radius, steps=config.pgd_steps, norm=threat.norm, seed=config.seed)
        added['examples'] = adversarial_examples(
            model, x, y, attack=attack, title=f'PGD-{config.pgd_steps} ({threat})', device=processes.device,
            seeds=torch.arange(len(x)))
    return dataclasses.replace(report, **added)


def wants_page(config: Any) -> bool:
    """Whether report.html is written."""
    return config.output is not None and config.html is not False


def write(report: RobustnessReport, config: Any, console: Console) -> None:
    """The files that were asked for, and the tables."""
    if config.output is not None:
        folder = Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        if wants_page(config):
            report.save_page(folder / 'report.html')
        report.save(folder / 'report.json')  # last, as the sign that all is there
    console.print(report.table())
    if (trust := report.trust_table()) is not None:
        console.print(trust)
    if config.robustbench_json:
        names = (*ENTRY, 'architecture', 'reported', 'footnote')
        entry = {name: getattr(config, f'robustbench_{name}') for name in names}
        text = json.dumps(robustbench_info(report, **entry), indent=2, ensure_ascii=False) + '\n'
        with whole_file(config.robustbench_json) as file:
            file.write(text.encode())
        console.print(f'RobustBench entry in {config.robustbench_json}', highlight=False, soft_wrap=True)
        for obstacle in robustbench_obstacles(report):
            console.print(f'  the leaderboard would not take it: {obstacle}', highlight=False, soft_wrap=True)


def _archive(folder: str | None, data: LabelledImages) -> CorruptionArchive | None:
    if folder is None:
        return None
    archive = CorruptionArchive(folder)
    if archive.image_shape != tuple(data.image_shape):
        raise ValueError(
            f'--corruptions {folder} holds images {archive.image_shape}; the model was given {tuple(data.image_shape)} '
            '(channels, height, width).')
    low, high = int(archive.labels.min()), int(archive.labels.max())
    if low < 0 or high >= data.num_classes:
        raise ValueError(
            f'--corruptions {folder}: labels from {low} to {high}; expected 0 to {data.num_classes - 1}.')
    return archive


def _trained_clean(checkpoint: Path, config: Any) -> Accuracy | None:
    """Clean accuracy that the training run wrote beside this very checkpoint, for the same images."""
    try:
        report = json.loads((checkpoint.parent / 'report.json').read_text())
        same = all(report[name] == getattr(config, name) for name in ('dataset', 'split', 'model'))
        if not same or report['checkpoint_sha256'] != file_sha256(checkpoint):
            return None
        return Accuracy(report['clean']['correct'], report['clean']['total'])
    except (OSError, ValueError, KeyError, TypeError):  # another program's report.json, or none
        return None

