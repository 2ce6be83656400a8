"""What comes out of a run: what validation chose, and how robust it is on the test split."""
import json
from typing import Any

from _cli import RunFailed, RunStopped
from _processes import StopSignals, signal_name
from _saver import BEST
from _settings import build_model
from _validation import selection

from timm_paf.data.files import whole_file
from timm_paf.evaluation import evaluate_robustness
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
    try:
        with job.console.status('measuring on the test split') as status:
            def progress(component: str, done: int, total: int) -> None:
                if stop.received:
                    raise RunStopped(
                        f'{signal_name(stop.received)} while measuring; the training is finished, measure again with '
                        f'--resume auto.')
                status.update(f'AutoAttack on the test split: {component} {done}/{total}')

            report = evaluate_robustness(
                model.to(device), job.test.images, job.test.labels, **config.evaluation(), device=device,
                progress=progress, model_name=config.model, dataset=config.dataset, split='test', checkpoint=checkpoint)
    except ValueError as error:
        raise RunFailed(f'{error} The checkpoints in {job.folder} are kept.') from error
    report.save(job.folder / 'report.json')
    job.console.print(report.table())
    job.console.print(f'results in {job.folder}', highlight=False, soft_wrap=True)
