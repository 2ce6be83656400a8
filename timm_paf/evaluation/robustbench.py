"""A report as a RobustBench entry: the JSON file in `model_info/<dataset>/<threat>/` of their repository."""
from collections.abc import Mapping, Sequence
from typing import Any

from timm_paf.evaluation.report import RobustnessReport

__all__ = ['robustbench_info', 'robustbench_obstacles']

# for each leaderboard: number of test images, and radii as its files write them
_BOARDS: dict[str, tuple[int, Mapping[str | None, str | None]]] = {
    'cifar10': (10_000, {'linf': '8/255', 'l2': '0.5'}),
    'cifar100': (10_000, {'linf': '8/255'}),
    'imagenet': (5_000, {'linf': '4/255'}),
}


def robustbench_info(
        report: RobustnessReport, *, link: str, name: str, authors: str | Sequence[str], venue: str,
        additional_data: bool, architecture: str | None = None, reported: str | float | None = None,
        footnote: str | None = None, number_forward_passes: int = 1,
) -> dict[str, Any]:
    """Content of the model-info file; accuracies are texts in percent with at most two decimals.

    Args:
        report: A report with clean accuracy and AutoAttack.
        link: URL of the paper.
        name: Title of the paper.
        authors: Names of the authors: a list, or a text with commas.
        venue: Venue and date, such as 'NeurIPS 2025' or 'arXiv, Oct 2021'.
        additional_data: Whether training used data beyond the data set. Synthetic images do not count if their
            generator was trained on the data set alone; the leaderboard names them in a footnote.
        architecture: Architecture as the leaderboard shows it; the report's model if None.
        reported: Robust accuracy in the paper, in percent; the measured one if None.
        footnote: Footnote of the leaderboard entry.
        number_forward_passes: Number of forward passes per prediction.

    Raises:
        ValueError: If a measurement is missing from the report, or a text is empty.
    """
    if missing := [key for key in ('clean', 'autoattack') if key not in report.measurements]:
        raise ValueError(
            f'the report has no measurement {" and ".join(missing)}; RobustBench needs clean accuracy and AutoAttack.')
    attacked = report.measurements['autoattack']
    clean, robust = (round(report.measurements[key].accuracy.percent, 2) for key in ('clean', 'autoattack'))
    info: dict[str, Any] = {
        'link': link, 'name': name, 'authors': authors if isinstance(authors, str) else ', '.join(authors),
        'additional_data': bool(additional_data), 'number_forward_passes': number_forward_passes,
        'dataset': _dataset(report), 'venue': venue, 'architecture': architecture or report.model or '',
        'eps': attacked.eps, 'clean_acc': str(clean),
        'reported': str(robust if reported is None else round(float(reported), 2)), 'autoattack_acc': str(robust)}
    if missing := [key for key in ('link', 'name', 'authors', 'venue', 'architecture') if not str(info[key]).strip()]:
        raise ValueError(f'{", ".join(missing)}: expected a non-empty text.')
    return {**info, 'footnote': footnote} if footnote else info


def robustbench_obstacles(report: RobustnessReport) -> list[str]:
    """Reasons why the leaderboard would reject a report with clean accuracy and AutoAttack, one sentence each."""
    dataset, attacked = _dataset(report), report.measurements['autoattack']
    clean, total = report.measurements['clean'].accuracy.total, attacked.accuracy.total
    version, warnings = attacked.details.get('version'), report.trust.warnings if report.trust else ()
    images, radii = _BOARDS.get(dataset, (total, {attacked.norm: attacked.eps}))
    eps = radii.get(attacked.norm)
    obstacles = {
        f'it has no data set {dataset}; it has {", ".join(_BOARDS)}.': dataset not in _BOARDS,
        f'it has no leaderboard for {dataset} in {attacked.norm}.': eps is None,
        f'it uses eps {eps} for {dataset} in {attacked.norm}, not {attacked.eps}.': eps not in (None, attacked.eps),
        f'it uses {images} test images, not {total}.': total != images,
        f'clean accuracy is measured on {clean} images, AutoAttack accuracy on {total}.': clean != total,
        f'it uses AutoAttack standard, not {version}.': version != 'standard',
        f'it uses the test split, not {report.split}.': report.split not in (None, 'test'),
        f'trust checks warn: {", ".join(check.name for check in warnings)}.': bool(warnings)}
    return [*(obstacle for obstacle, holds in obstacles.items() if holds), *report.warnings]


def _dataset(report: RobustnessReport) -> str:
    name = (report.dataset or 'unknown').lower().rstrip('/').rsplit('/', 1)[-1]
    return 'imagenet' if name in ('imagenet-1k', 'imagenet1k') else name
