"""Accuracies against closed forms, and the files of an evaluation."""
import csv
import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from timm_paf.attacks import PGD, ThreatModel
from timm_paf.evaluation import Accuracy, accuracy_under_attack, clean_accuracy, evaluate_robustness


def threshold_model(margin=10.):
    """Two classes by the mean pixel: logits (0, margin (mean - 1/2)); an image at mean 1/2 + d is robust if eps < d."""
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
    with pytest.raises(ValueError, match=r'adv\.npz is for AutoAttack'):
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


def test_attacked_images_with_nan_are_an_error():
    with pytest.raises(ValueError, match='NaN'):
        accuracy_under_attack(threshold_model(), X, Y, attack=lambda model, x, y: x * torch.nan)


def test_classes_are_counted_under_all_attacks():
    report = evaluate_robustness(threshold_model(), X, Y, threat=ThreatModel(eps=0.055), pgd_steps=5, n_examples=8)
    distance = (X[:, 0, 0, 0] - 0.5).abs()
    assert [(e.label, e.clean.total, e.robust.correct) for e in report.by_class] == [
        (label, len(distance[label == Y]), int((distance[label == Y] > 0.055).sum())) for label in (0, 1)]
    assert report.to_dict()['by_class'][0]['robust']['correct'] == report.by_class[0].robust.correct
