"""Accuracies against closed forms, and the files of an evaluation."""
import csv
import hashlib
import json

import numpy as np
import pytest
import torch

from timm_paf.attacks import PGD, ThreatModel
from timm_paf.evaluation import Accuracy, accuracy_under_attack, clean_accuracy, evaluate_robustness

pytestmark = pytest.mark.usefixtures('short_autoattack')


def test_counts_are_those_of_the_closed_form(ramp):
    model, x, y, distance = ramp
    assert clean_accuracy(model.train(), x, y, batch_size=7) == Accuracy(41, 41)
    for eps in (0.015, 0.055, 0.3):
        expected = Accuracy(int((distance > eps).sum()), 41)
        assert accuracy_under_attack(model, x, y, attack=PGD(eps=eps, steps=5), batch_size=7) == expected
    assert model.training


def test_report_counts_every_attack(ramp, tmp_path):
    model, x, y, distance = ramp
    robust = distance > 0.055
    checkpoint = tmp_path / 'weights.pth'
    checkpoint.write_bytes(b'some weights')
    report = evaluate_robustness(
        model, x, y, threat=ThreatModel(eps='0.055'), pgd_steps=5, n_examples=8, batch_size=5, seed=4,
        model_name='threshold', dataset='ramp', split='test', checkpoint=checkpoint)
    report.save(tmp_path / 'report.json')
    content = json.loads((tmp_path / 'report.json').read_text())
    for name, correct, total in (('clean', 41, 41), ('pgd', robust.sum(), 41), ('autoattack', robust[:8].sum(), 8)):
        assert (content[name]['correct'], content[name]['total']) == (int(correct), total)
    assert [content['pgd'][name] for name in ('eps', 'norm', 'steps', 'seed')] == ['0.055', 'linf', 5, 4]
    assert content['checkpoint_sha256'] == hashlib.sha256(b'some weights').hexdigest()
    assert content['versions']['torch'] == torch.__version__.split('+')[0]
    assert [content[name] for name in ('model', 'dataset', 'split')] == ['threshold', 'ramp', 'test']
    # classes are counted under all attacks
    for entry, label in zip(content['by_class'], (0, 1), strict=True):
        assert entry['robust']['correct'] == int(robust[y == label].sum())
        assert (entry['label'], entry['clean']['total']) == (label, int((y == label).sum()))


def test_autoattack_can_be_left_out(ramp, tmp_path):
    settings = dict(threat=ThreatModel(eps=0.1), autoattack_version=None)
    assert list(evaluate_robustness(*ramp[:3], **settings).measurements) == ['clean', 'pgd']
    with pytest.raises(ValueError, match=r'adv\.npz is for AutoAttack'):
        evaluate_robustness(*ramp[:3], **settings, save_adv=tmp_path / 'adv.npz')


def test_saved_images_give_the_reports_number(ramp, tmp_path):
    model, x, y, _ = ramp
    y[0] = 1 - y[0]
    report = evaluate_robustness(
        model, x, y, threat=ThreatModel(eps='0.055'), pgd_steps=1, n_examples=30, batch_size=7,
        save_adv=tmp_path / 'adv.npz', save_verdicts=tmp_path / 'verdicts.csv').to_dict()
    with np.load(tmp_path / 'adv.npz') as content:
        x_adv, labels = torch.from_numpy(content['image']), torch.from_numpy(content['label'])
    assert torch.equal(labels, y[:30]) and (x_adv - x[:30]).abs().max() <= 0.055 + 1e-6
    attacked = report['autoattack']
    assert clean_accuracy(model, x_adv, labels) == Accuracy(attacked['correct'], attacked['total'])
    rows = list(csv.DictReader((tmp_path / 'verdicts.csv').read_text().splitlines()))
    for name in ('autoattack', 'worst_case'):
        assert sum(int(row[name]) for row in rows) == report[name]['correct']
    for row in rows:
        assert int(row['worst_case']) == min(int(row[name]) for name in ('clean', 'pgd', 'autoattack'))
        assert (row['broken_by'] == '') == (row['worst_case'] == '1')
    assert rows[0]['broken_by'] == 'clean' and attacked['broken_by']['clean'] == 1
    assert sum(attacked['broken_by'].values()) == 30 - attacked['correct']
    assert sum(run['broken'] for run in attacked['runs']) == 29 - attacked['correct']


def test_pixels_out_of_range_are_refused(ramp):
    model, x, y, _ = ramp
    for measure in (clean_accuracy, lambda *problem: accuracy_under_attack(*problem, attack=PGD(eps=0.1))):
        with pytest.raises(ValueError, match=r'expected \[0, 1\]'):
            measure(model, x * 255, y)
