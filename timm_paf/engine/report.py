"""The final measurement of a run on the test split, and the files about it."""
import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from timm_paf._files import whole_file
from timm_paf.attacks import PGD
from timm_paf.data import LabelledImages
from timm_paf.engine.cli import RunFailed, RunStopped
from timm_paf.engine.compilation import compile_settings
from timm_paf.engine.config import TrainConfig
from timm_paf.engine.distributed import StopSignals, signal_name
from timm_paf.engine.page import training_page
from timm_paf.engine.progress import AttackView
from timm_paf.evaluation import RobustnessReport, adversarial_examples, evaluate_robustness

__all__ = ['final_report', 'write_report', 'write_selection']


def final_report(
        model: nn.Module, data: LabelledImages, config: TrainConfig, *, device: torch.device, console: Console,
        stop: StopSignals, checkpoint: Path | None, state: Path | None,
) -> RobustnessReport:
    """Clean, PGD and AutoAttack accuracy of a model on float32 images, with examples of attacked images.

    AutoAttack keeps its state in the folder `state`; `checkpoint` is the file of the weights, for the report.

    Raises:
        RunFailed: If images, labels or logits are not as expected.
        RunStopped: If a signal arrives.
    """
    with AttackView(console, 'the test split') as view:
        def progress(*done: Any) -> None:
            if stop.received:
                raise RunStopped(
                    f'{signal_name(stop.received)} while measuring; the training is finished, measure again with '
                    f'--resume auto.')
            view.progress(*done)

        try:
            report = evaluate_robustness(
                model, data.images, data.labels, **config.evaluation(), device=device, progress=progress, state=state,
                model_name=config.model, dataset=config.dataset, split='test', checkpoint=checkpoint,
                compile=compile_settings(config))
        except ValueError as error:
            raise RunFailed(f'{error} The checkpoints of the run are kept.') from error
    attack = PGD(eps=config.eps, norm=config.norm, steps=config.pgd_steps, seed=config.seed)
    return dataclasses.replace(report, examples=adversarial_examples(
        model, data.images, data.labels, attack=attack, title=f'PGD-{config.pgd_steps}', device=device,
        seeds=torch.arange(len(data))))


def write_selection(selection: Mapping[str, Any], folder: Path) -> None:
    """Write selection.json, the choice of validation."""
    with whole_file(folder / 'selection.json') as file:
        file.write((json.dumps(selection, indent=2) + '\n').encode())


def write_report(
        report: RobustnessReport, folder: Path, rows: Sequence[Mapping[str, Any]], *, config: TrainConfig,
        selection: Mapping[str, Any], before: nn.Module, after: nn.Module,
) -> None:
    """Write report.html with the networks before and after training, then report.json; remove AutoAttack's state."""
    text = training_page(report, rows, settings=config.to_dict(), selection=selection, before=before, after=after)
    with whole_file(folder / 'report.html') as file:
        file.write(text.encode())
    report.save(folder / 'report.json')  # the last file: it marks the run as finished
    shutil.rmtree(folder / 'autoattack', ignore_errors=True)
