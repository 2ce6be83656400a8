"""The report as a file and as tables."""
import os

from rich.console import Console

from timm_paf.evaluation import Accuracy, Measurement, RobustnessReport, TrustCheck, TrustReport


def printed(table):
    with open(os.devnull, 'w') as nowhere:
        console = Console(width=120, record=True, file=nowhere)
        console.print(table)
    return ' '.join(console.export_text().split())


def test_table_has_counts_and_intervals():
    report = RobustnessReport(model='m', measurements={
        'clean': Measurement(accuracy=Accuracy(354, 360), attack='none'),
        'pgd': Measurement(accuracy=Accuracy(265, 360), attack='PGD-20', norm='linf', eps='8/255')})
    text = printed(report.table())
    for cell in ('96.4 to 99.2', '98.3 %', '354 / 360', 'linf 8/255', '265 / 360'):
        assert cell in text


def test_trust_table_explains_warnings():
    checks = tuple(
        TrustCheck(name=name, status=status, finding=f'[bold]{name} found[/]', meaning=f'{name} means')
        for name, status in (('fine', 'pass'), ('odd', 'warn'), ('unknown', 'skip')))
    trust = TrustReport(
        checks=checks, images=4, norm='linf', eps='8/255', seed=0, forwards=8, backwards=12, square_images=2,
        seconds=1.)
    text = printed(RobustnessReport(measurements={}, trust=trust).trust_table())
    assert 'odd means' in text and 'fine means' not in text and '[bold]fine found[/]' in text  # rich markup is not run
    assert '3 forward and backward passes and 2 forward passes each' in text
    assert RobustnessReport(measurements={}).trust_table() is None
