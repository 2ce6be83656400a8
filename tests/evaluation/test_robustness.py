import csv
import hashlib
import json
import os
from statistics import NormalDist

import numpy as np
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


def test_autoattack_can_be_left_out(tmp_path):
    settings = dict(threat=ThreatModel(eps=0.1), autoattack_version=None)
    report = evaluate_robustness(threshold_model(), X, Y, **settings)
    assert list(report.measurements) == ['clean', 'pgd']
    with pytest.raises(ValueError, match=r'adv\.npz is for AutoAttack, which is left out'):
        evaluate_robustness(threshold_model(), X, Y, **settings, save_adv=tmp_path / 'adv.npz')


def test_saved_images_give_the_reports_number(tmp_path):
    model, y = threshold_model(), Y.clone()
    y[0] = 1 - y[0]
    report = evaluate_robustness(
        model, X, y, threat=ThreatModel(eps='0.055'), pgd_steps=1, n_examples=30, batch_size=7,
        save_adv=tmp_path / 'adv.npz', save_verdicts=tmp_path / 'verdicts.csv').to_dict()
    with np.load(tmp_path / 'adv.npz') as content:
        x_adv, labels = torch.from_numpy(content['image']), torch.from_numpy(content['label'])
    assert torch.equal(labels, y[:30]) and (x_adv - X[:30]).abs().max() <= 0.055 + 1e-6
    again = clean_accuracy(model, x_adv, labels)
    assert (again.correct, again.total) == (report['autoattack']['correct'], report['autoattack']['total'])
    rows = list(csv.DictReader((tmp_path / 'verdicts.csv').read_text().splitlines()))
    for name in ('autoattack', 'worst_case'):
        assert sum(int(row[name]) for row in rows) == report[name]['correct']
    for row in rows:
        assert int(row['worst_case']) == min(int(row[name]) for name in ('clean', 'pgd', 'autoattack'))
        assert (row['broken_by'] == '') == (row['worst_case'] == '1')
    assert rows[0]['broken_by'] == 'clean' and report['autoattack']['broken_by']['clean'] == 1
    lost = sum(report['autoattack']['broken_by'].values())
    assert lost == 30 - report['autoattack']['correct'] == 1 + sum(
        run['broken'] for run in report['autoattack']['runs'])


def test_table_names_counts():
    report = RobustnessReport(model='m', measurements={
        'clean': Measurement(accuracy=Accuracy(354, 360), attack='none'),
        'pgd': Measurement(accuracy=Accuracy(265, 360), attack='PGD-20', norm='linf', eps='8/255')})
    console = Console(width=100, record=True, file=open('/dev/null', 'w'))  # noqa: SIM115
    console.print(report.table())
    console.file.close()
    text = console.export_text()
    assert '96.4 to 99.2' in text  # Wilson's interval of 354 in 360
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


@pytest.mark.parametrize('correct, total', [(0, 10), (3, 10), (10, 10), (354, 360), (5000, 10000)])
@pytest.mark.parametrize('confidence', [0.9, 0.95])
def test_wilson_interval(correct, total, confidence):
    """Its ends are the shares p from which the observed one is z standard deviations away."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / total
    low, high = Accuracy(correct, total).interval(confidence)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
    for end, at_edge in ((low, correct == 0), (high, correct == total)):
        if not at_edge:
            assert abs(share - end) == pytest.approx(z * (end * (1 - end) / total) ** 0.5, rel=1e-9)
    assert Accuracy(correct, total).interval() == Accuracy(correct, total).interval(0.95)


@pytest.mark.parametrize('confidence', [0., 1., 95])
def test_impossible_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match='between 0 and 1'):
        Accuracy(1, 2).interval(confidence)
