import hashlib
import json
import os

import pytest
import torch
from rich.console import Console
from torch import nn

from timm_paf.attacks import PGD, ThreatModel
from timm_paf.evaluation import (
    Accuracy,
    Measurement,
    RobustnessReport,
    TrustCheck,
    TrustReport,
    accuracy_under_attack,
    clean_accuracy,
    evaluate_robustness,
)


def threshold_model(margin=10.):
    """Two classes by the mean pixel: logits (0, margin (mean - 1/2)); images at mean 1/2 + d stand while eps < d."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(16), torch.full((16,), margin / 16)]))
        model[1].bias.copy_(torch.tensor([0., -margin / 2]))
    return model


X = torch.linspace(0.3, 0.7, 41)[:, None, None, None].expand(41, 1, 4, 4).contiguous()
Y = (X[:, 0, 0, 0] > 0.5).long()


def test_counts_are_those_of_the_closed_form():
    model = threshold_model().train()
    assert clean_accuracy(model, X, Y, batch_size=7) == Accuracy(41, 41)
    distance = (X[:, 0, 0, 0] - 0.5).abs()
    for eps in (0.015, 0.055, 0.105, 0.3):
        attack = PGD(eps=eps, steps=5)
        expected = int((distance > eps).sum())
        assert accuracy_under_attack(model, X, Y, attack=attack, batch_size=7) == Accuracy(expected, 41)
    assert model.training


def test_report_counts_every_attack(tmp_path):
    model, eps = threshold_model(), 0.055
    checkpoint = tmp_path / 'weights.pth'
    checkpoint.write_bytes(b'some weights')
    report = evaluate_robustness(
        model, X, Y, threat=ThreatModel(eps='0.055'), pgd_steps=5, n_examples=8, batch_size=5, seed=4,
        model_name='threshold', dataset='ramp', split='test', checkpoint=checkpoint)
    report.save(tmp_path / 'report.json')
    content = json.loads((tmp_path / 'report.json').read_text())
    distance = (X[:, 0, 0, 0] - 0.5).abs()
    assert (content['clean']['correct'], content['clean']['total']) == (41, 41)
    assert (content['pgd']['correct'], content['pgd']['total']) == (int((distance > eps).sum()), 41)
    assert (content['autoattack']['correct'], content['autoattack']['total']) == (int((distance[:8] > eps).sum()), 8)
    assert (content['pgd']['eps'], content['pgd']['norm'], content['pgd']['steps'], content['pgd']['seed']) == (
        '0.055', 'linf', 5, 4)
    assert content['checkpoint_sha256'] == hashlib.sha256(b'some weights').hexdigest()
    assert content['versions']['torch'] == torch.__version__.split('+')[0]
    assert (content['model'], content['dataset'], content['split']) == ('threshold', 'ramp', 'test')
    assert [p.name for p in tmp_path.iterdir() if p.suffix == '.tmp'] == []


def test_autoattack_can_be_left_out():
    report = evaluate_robustness(threshold_model(), X, Y, threat=ThreatModel(eps=0.1), autoattack_version=None)
    assert list(report.measurements) == ['clean', 'pgd']


def test_table_names_counts():
    report = RobustnessReport(model='m', measurements={
        'clean': Measurement(accuracy=Accuracy(354, 360), attack='none'),
        'pgd': Measurement(accuracy=Accuracy(265, 360), attack='PGD-20', norm='linf', eps='8/255')})
    console = Console(width=100, record=True, file=open('/dev/null', 'w'))  # noqa: SIM115
    console.print(report.table())
    console.file.close()
    text = console.export_text()
    assert '98.3 %' in text and '354 / 360' in text and 'linf 8/255' in text and '265 / 360' in text


def test_trust_table_explains_what_warns():
    checks = tuple(
        TrustCheck(name=name, status=status, finding=f'[bold]{name} found[/]', meaning=f'{name} means')
        for name, status in (('fine', 'pass'), ('odd', 'warn'), ('unknown', 'skip')))
    trust = TrustReport(
        checks=checks, images=4, norm='linf', eps='8/255', seed=0, forwards=8, backwards=12, square_images=2,
        seconds=1.)
    report = RobustnessReport(measurements={}, trust=trust)
    with open(os.devnull, 'w') as nowhere:
        console = Console(width=120, record=True, file=nowhere)
        console.print(report.trust_table())
    text = ' '.join(console.export_text().split())
    assert 'odd means' in text and 'fine means' not in text and '[bold]fine found[/]' in text  # no markup from outside
    assert '3 forward and backward passes and 2 forward passes each, and APGD and Square on 2 images' in text
    assert RobustnessReport(measurements={}).trust_table() is None


@pytest.mark.parametrize('correct, total, low, high', [
    (0, 10, 0., 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.), (6155, 10000, 0.6059, 0.6250)])
def test_interval_is_wilsons(correct, total, low, high):
    # Newcombe (1998) and scipy.stats.binomtest(...).proportion_ci(method='wilson') give these
    assert Accuracy(correct, total).interval() == pytest.approx((low, high), abs=5e-5)


def test_images_of_nan_are_no_verdict():
    with pytest.raises(ValueError, match='the attack made images of NaN'):
        accuracy_under_attack(threshold_model(), X, Y, attack=lambda model, x, y: x * torch.nan)


def test_classes_are_counted_under_all_attacks():
    report = evaluate_robustness(threshold_model(), X, Y, threat=ThreatModel(eps=0.055), pgd_steps=5, n_examples=8)
    distance = (X[:, 0, 0, 0] - 0.5).abs()
    assert [(e.label, e.clean.total, e.robust.correct) for e in report.by_class] == [
        (label, len(distance[label == Y]), int((distance[label == Y] > 0.055).sum())) for label in (0, 1)]
    assert report.to_dict()['by_class'][0]['robust']['correct'] == report.by_class[0].robust.correct


def test_failed_save_leaves_the_old_report(tmp_path):
    path = tmp_path / 'report.json'
    path.write_text('old')
    broken = Measurement(accuracy=Accuracy(1, 2), attack='x', details={'object': object()})
    with pytest.raises(TypeError):
        RobustnessReport(measurements={'clean': broken}).save(path)
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('counts', [(-1, 2), (3, 2), (0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match='expected 0 <= correct <= total'):
        Accuracy(*counts)
