"""A robustness report as a page for people: what was found, how far it can be believed, with what it was measured."""
from collections.abc import Iterator
from typing import Any

from timm_paf.evaluation import html
from timm_paf.evaluation.examples import Example
from timm_paf.evaluation.html import Html
from timm_paf.evaluation.plots import class_png, corruption_png, curve_png
from timm_paf.evaluation.report import Accuracy, RobustnessReport

__all__ = ['report_page', 'report_sections']

_MARKS = {'pass': 'good', 'warn': 'bad', 'skip': 'none'}


def report_page(report: RobustnessReport) -> str:
    """The text of an HTML file that needs no other.

    Args:
        report: The parts that were measured are shown; figures need matplotlib, and without it a line says so.
    """
    return html.page(
        f'Robustness of {report.model or "a model"}', report_sections(report),
        subtitle=' · '.join(filter(None, (report.dataset, report.split, report.created))))


def report_sections(report: RobustnessReport) -> Iterator[Html]:
    """The parts of a report, for pages that hold more."""
    yield _accuracies(report)
    if report.trust is not None:
        yield _trust(report)
    if report.curve is not None:
        yield _curve(report)
    if report.by_class:
        yield _classes(report)
    if report.corruptions is not None:
        yield _corruptions(report)
    if report.examples:
        yield _examples(report)
    yield _source(report)


def _accuracies(report: RobustnessReport) -> Html:
    entries = [
        (_title(m), m.accuracy.correct / m.accuracy.total, _counts(m.accuracy)) for m in report.measurements.values()]
    rows = []
    for m in report.measurements.values():
        details = dict(m.details)
        details.pop('runs', None)  # component by component, for programs
        notes = [*details.pop('warnings', ())]
        notes += [f'{key} {_plain(value)}' for key, value in details.items() if value not in (None, [], {})]
        rows.append((
            m.attack, m.norm, m.eps, m.steps, m.seed, *_cells(m.accuracy),
            None if m.seconds is None else f'{m.seconds:.0f} s', '; '.join(notes)))
    return html.section(
        'Accuracy', html.tiles(entries),
        html.table(rows, columns='   nnnnnnt', header=(
            'attack', 'norm', 'eps', 'steps', 'seed', 'accuracy', '95 % interval', 'images', 'time', 'settings')),
        html.paragraph(
            'An accuracy counts the images that are classified correctly as the attack leaves them. Intervals are '
            "Wilson's, for the population that the images are a sample of.", soft=True))


def _trust(report: RobustnessReport) -> Html:
    trust = report.trust
    assert trust is not None
    warned = len(trust.warnings)
    verdict = (
        f'{warned} of {len(trust.checks)} checks warn: the robust accuracy above may be too high.' if warned else
        'No check warns.')
    return html.section(
        'Can it be believed?', html.paragraph(verdict),
        html.table(
            [(html.badge(c.status, _MARKS[c.status]), c.name, c.finding, c.meaning) for c in trust.checks],
            header=('', 'check', 'found', 'means'), columns='  tt', stacked=True),
        html.paragraph(f'{trust.norm} eps {trust.eps}, seed {trust.seed}; {trust.cost}', soft=True))


def _curve(report: RobustnessReport) -> Html:
    curve = report.curve
    assert curve is not None
    both = all(point.alone is not None for point in curve.points)
    rows = [
        (p.eps, *(_cells(p.alone)[:2] if p.alone is not None else ()), *_cells(p.worst)) for p in curve.points]
    header = (
        'eps', *(('at this eps alone', '95 % interval') if both else ()), 'worst of this and smaller', '95 % interval',
        'images')
    remark = (
        'An image that fell at a smaller eps counts as fallen in the column of the worst case; '
        + ('in the other, each eps is attacked anew.' if both else 'it was not attacked again.'))
    return html.section(
        'Robust accuracy over eps', html.drawn(lambda: curve_png(curve), 'accuracy over eps'),
        html.table(rows, header=header, columns='nnnnnn'),
        html.paragraph(f'{curve.attack}, {curve.norm}, seed {curve.seed}, {curve.seconds:.0f} s. {remark}', soft=True))


def _classes(report: RobustnessReport) -> Html:
    attacks = ' and '.join(m.attack for name, m in report.measurements.items() if name != 'clean')
    ball = next((f' ({m.norm} eps {m.eps})' for m in report.measurements.values() if m.norm), '')
    rows = [(str(e.label), *_cells(e.clean)[:2], *_cells(e.robust)) for e in report.by_class]
    worst = min(report.by_class, key=lambda entry: entry.robust.correct / entry.robust.total)
    return html.section(
        'By class', html.paragraph(f'Least robust: class {worst.label}, {worst.robust}.'),
        html.drawn(lambda: class_png(report.by_class), 'clean and robust accuracy of every class'),
        html.table(rows, columns='nnnnnn', header=(
            'class', 'clean', '95 % interval', 'robust', '95 % interval', 'images')),
        html.paragraph(
            f'Robust: correct without an attack and under {attacks}{ball}, each where it attacked the image.',
            soft=True))


def _corruptions(report: RobustnessReport) -> Html:
    found = report.corruptions
    assert found is not None
    rows = [
        (name.replace('_', ' '), *(f'{cell.percent:.1f}' for cell in row), f'{found.of(name).percent:.1f}')
        for name, row in found.accuracies.items()]
    rows.append((
        'mean', *(f'{found.at_severity(severity).percent:.1f}' for severity in range(1, 6)),
        f'{found.mean.percent:.1f}'))
    over = f'the {len(found.averaged)} corruptions' + (
        ' of the benchmark' if len(found.averaged) < len(found.accuracies) else '')
    return html.section(
        'Common corruptions', html.paragraph(f'Mean over {over} and five severities: {found.mean}.'),
        html.drawn(lambda: corruption_png(found), 'accuracy by corruption and severity'),
        html.table(rows, columns=' nnnnnn', header=('accuracy, %', '1', '2', '3', '4', '5', 'mean')),
        html.paragraph(
            f'{next(iter(found.accuracies.values()))[0].total} images a cell, from {found.archive}.', soft=True))


def _examples(report: RobustnessReport) -> Html:
    shown = []
    for example in report.examples:
        shown.append(_picture(example, example.original, example.clean_prediction, 'original'))
        shown.append(_picture(example, example.adversarial, example.prediction, 'attacked'))
    return html.section(
        'Examples', html.paragraph(
            f'The first {len(report.examples)} images, each beside what {report.examples[0].attack} makes of it; in '
            'colour, whether the model is right.'),
        html.pictures(shown, together=2))


def _picture(example: Example, image, prediction: int, kind: str) -> html.Picture:
    right = prediction == example.label
    return html.Picture(
        html.image_png(image), f'{kind} image of class {example.label}',
        f'{kind}: {example.label}' + (' is recognised' if right else f' is taken for {prediction}'),
        'good' if right else 'bad')


def _source(report: RobustnessReport) -> Html:
    rows = [
        ('model', report.model), ('data set', report.dataset), ('split', report.split),
        ('checkpoint', report.checkpoint), ('SHA-256 of the checkpoint', report.checkpoint_sha256),
        ('measured', report.created), *report.versions.items()]
    return html.section('What was measured with what', html.table(
        [row for row in rows if row[1] is not None], header=('', ''), columns=' c'))


def _title(m) -> str:
    return 'clean' if m.norm is None else f'{m.attack}, {m.norm} {m.eps}'


def _counts(accuracy: Accuracy) -> str:
    low, high = (100 * end for end in accuracy.interval())
    return f'{accuracy.correct} of {accuracy.total} images; {low:.1f} to {high:.1f} %'


def _cells(accuracy: Accuracy) -> tuple[str, str, str]:
    low, high = (100 * end for end in accuracy.interval())
    return f'{accuracy.percent:.1f} %', f'{low:.1f} to {high:.1f}', f'{accuracy.correct} / {accuracy.total}'


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{key} {_plain(entry)}' for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ', '.join(map(_plain, value))
    return f'{value:g}' if isinstance(value, float) else str(value)
