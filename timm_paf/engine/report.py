"""What comes out of a run: what validation chose, and how robust it is on the test split."""
import dataclasses
import json
import shutil
from typing import Any

import torch
from torch import nn

from timm_paf._files import whole_file
from timm_paf.attacks import PGD
from timm_paf.engine.checkpoint import BEST
from timm_paf.engine.cli import RunFailed, RunStopped
from timm_paf.engine.compilation import compile_settings
from timm_paf.engine.config import plain
from timm_paf.engine.distributed import Processes, StopSignals, signal_name
from timm_paf.engine.page import training_page
from timm_paf.engine.progress import AttackView
from timm_paf.engine.settings import build_model
from timm_paf.engine.task import make_model
from timm_paf.engine.validation import selection
from timm_paf.evaluation import RobustnessReport, adversarial_examples, evaluate_robustness
from timm_paf.models import load_weights

__all__ = ['report_robustness', 'report_selection']


def report_selection(job: Any) -> None:
    """What validation chose and how far the last epoch is behind it: selection.json and a line for each."""
    found = selection(job)
    with whole_file(job.folder / 'selection.json') as file:
        file.write((json.dumps(found, indent=2) + '\n').encode())
    metric = found['metric']
    measured = 'clean' if metric == 'clean' else f'under PGD-{job.config.validation_attack(0).steps}'
    for weights in ('ema', 'raw'):
        if weights in found:
            best, gap = found[weights]['best'], found[weights]['gap']
            which = '' if 'ema' not in found else ', averaged weights' if weights == 'ema' else ', raw weights'
            job.say(
                f'best on the validation split{which}: epoch {best["epoch"] + 1}, {best[metric]:.1f} % {measured}; the '
                f'last epoch is {gap:.1f} points below')


def report_robustness(job: Any, stop: StopSignals) -> None:
    """Clean, PGD and AutoAttack accuracy of the best checkpoint on the test split: report.json and a table."""
    config, device, checkpoint = job.config, job.processes.device, job.folder / BEST
    model = build_model(
        config.model, num_classes=job.test.num_classes, in_chans=job.test.image_shape[0], **config.model_arguments())
    load_weights(model, checkpoint)
    # a measurement that is interrupted goes on from here
    state = None if config.autoattack == 'none' else job.folder / 'autoattack'
    try:
        with AttackView(job.console, 'the test split') as view:
            def progress(*done: Any) -> None:
                if stop.received:
                    raise RunStopped(
                        f'{signal_name(stop.received)} while measuring; the training is finished, measure again with '
                        f'--resume auto.')
                view.progress(*done)

            report = evaluate_robustness(
                model.to(device), job.test.images, job.test.labels, **config.evaluation(), device=device,
                progress=progress, state=state, model_name=config.model, dataset=config.dataset, split='test',
                checkpoint=checkpoint, compile=compile_settings(config))
    except ValueError as error:
        raise RunFailed(f'{error} The checkpoints in {job.folder} are kept.') from error
    attack = PGD(eps=config.eps, norm=config.norm, steps=config.pgd_steps, seed=config.seed)
    report = dataclasses.replace(report, examples=adversarial_examples(
        model, job.test.images, job.test.labels, attack=attack, title=f'PGD-{config.pgd_steps}', device=device,
        seeds=torch.arange(len(job.test))))
    write_page(job, report, model)
    report.save(job.folder / 'report.json')  # the last of all: it says that the run is finished
    if state is not None:
        shutil.rmtree(state, ignore_errors=True)
    job.console.print(report.table())
    job.say(f'results in {job.folder}; report.html is for the browser')


def write_page(job: Any, report: RobustnessReport, model: nn.Module) -> None:
    """The run as a page: report.html."""
    before = make_model(dataclasses.replace(job.config, device='cpu'), job.batches.real, Processes(torch.device('cpu')))
    text = training_page(
        report, job.progress.rows, settings=plain(job.config), selection=selection(job), before=before, after=model)
    with whole_file(job.folder / 'report.html') as file:
        file.write(text.encode())
