"""A report as an entry of RobustBench: the model-info file of their repository, `model_info/<dataset>/<threat>/`."""
from collections.abc import Sequence
from typing import Any

from timm_paf.evaluation.report import Accuracy, RobustnessReport

__all__ = ['robustbench_info', 'robustbench_obstacles']

# what the leaderboard is about: images of the test set that it counts on, and radii as its files write them
_BOARDS = {
    'cifar10': (10_000, {'linf': '8/255', 'l2': '0.5'}),
    'cifar100': (10_000, {'linf': '8/255'}),
    'imagenet': (5_000, {'linf': '4/255'}),
}


def robustbench_info(
        report: RobustnessReport,
        *,
        link: str,
        name: str,
        authors: str | Sequence[str],
        venue: str,
        additional_data: bool,
        architecture: str | None = None,
        reported: str | float | None = None,
        footnote: str | None = None,
        number_forward_passes: int = 1,
) -> dict[str, Any]:
    """What the model-info file holds; accuracies are texts in percent with at most two decimals, as there.

    Args:
        report: With clean accuracy and AutoAttack.
        link: Address of the paper.
        name: Its title.
        authors: Their names, separated by commas, or a list.
        venue: Such as 'NeurIPS 2025', or 'arXiv, Oct 2021'.
        additional_data: Whether data beyond the data set were used in training. The leaderboard counts synthetic images
            of a generator that saw nothing else as none, and says so in a footnote.
        architecture: What the leaderboard shows; the report's model if None.
        reported: Robust accuracy in percent that the paper states; the measured one if None.
        footnote: Remark that the leaderboard shows.
        number_forward_passes: Passes that one prediction takes.

    Raises:
        ValueError: If the report lacks a measurement, or a text is empty.
    """
    texts = {
        'link': link, 'name': name, 'venue': venue, 'architecture': architecture or report.model or '',
        'authors': authors if isinstance(authors, str) else ', '.join(authors)}
    if missing := [key for key, text in texts.items() if not text.strip()]:
        raise ValueError(f'{", ".join(missing)}: expected a text that is not empty.')
    if missing := [key for key in ('clean', 'autoattack') if key not in report.measurements]:
        raise ValueError(f'the report has no measurement {" and ".join(missing)}; RobustBench wants clean accuracy and '
                         'AutoAttack.')
    attacked = report.measurements['autoattack']
    robust = _percent(attacked.accuracy)
    return {
        'link': texts['link'], 'name': texts['name'], 'authors': texts['authors'],
        'additional_data': bool(additional_data), 'number_forward_passes': number_forward_passes,
        'dataset': _dataset(report), 'venue': texts['venue'], 'architecture': texts['architecture'],
        'eps': attacked.eps, 'clean_acc': _percent(report.measurements['clean'].accuracy),
        'reported': robust if reported is None else str(round(float(reported), 2)), 'autoattack_acc': robust,
        **({'footnote': footnote} if footnote else {}),
    }


def robustbench_obstacles(report: RobustnessReport) -> list[str]:
    """Why the leaderboard would not take these numbers, a sentence each; empty if nothing is in the way.

    Args:
        report: As `robustbench_info`.
    """
    dataset, found = _dataset(report), []
    attacked = report.measurements['autoattack']
    if dataset not in _BOARDS:
        found.append(f'{dataset} is none of its data sets ({", ".join(_BOARDS)}).')
    else:
        images, radii = _BOARDS[dataset]
        eps = radii.get(attacked.norm or '')
        if eps is None:
            found.append(f'it has no board for {dataset} in {attacked.norm}.')
        elif attacked.eps != eps:
            found.append(f'its radius on {dataset} in {attacked.norm} is {eps}, not {attacked.eps}.')
        if attacked.accuracy.total != images:
            found.append(f'it attacks {images} images, not {attacked.accuracy.total}.')
    clean = report.measurements['clean'].accuracy
    if clean.total != attacked.accuracy.total:
        found.append(f'clean accuracy is of {clean.total} images, that under AutoAttack of {attacked.accuracy.total}.')
    if attacked.details.get('version') != 'standard':
        found.append(f'it wants AutoAttack standard, not {attacked.details.get("version")}.')
    if report.split not in (None, 'test'):
        found.append(f'it measures on the test split, not on {report.split}.')
    if report.trust is not None and report.trust.warnings:
        found.append('trust checks warn: ' + ', '.join(check.name for check in report.trust.warnings) + '.')
    return found


def _dataset(report: RobustnessReport) -> str:
    name = (report.dataset or 'unknown').lower().rstrip('/').rsplit('/', 1)[-1]
    return {'imagenet-1k': 'imagenet', 'imagenet1k': 'imagenet'}.get(name, name)


def _percent(accuracy: Accuracy) -> str:
    return str(round(accuracy.percent, 2))
