import hashlib
import json

import pytest
import torch
from rich.console import Console
from torch import nn

from timm_paf.attacks import PGD, ThreatModel
from timm_paf.evaluation import (
    Accuracy,
    Measurement,
    RobustnessReport,
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
