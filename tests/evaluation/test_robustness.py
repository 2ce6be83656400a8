"""Accuracies against closed forms, and the files of an evaluation."""
import csv
import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.attacks.test_autoattack_model import Ticking
from timm_paf.attacks import PGD, Normalized, ThreatModel
from timm_paf.evaluation import (
    Accuracy,
    accuracy_under_attack,
    check_state,
    check_trust,
    clean_accuracy,
    evaluate_robustness,
    robustness_curve,
)

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
    assert 'the same number of images' in report.counts_note and report.counts_note in report.page()
    assert content['checkpoint_sha256'] == hashlib.sha256(b'some weights').hexdigest()
    assert content['versions']['torch'] == torch.__version__.split('+')[0]
    assert [content[name] for name in ('model', 'dataset', 'split')] == ['threshold', 'ramp', 'test']
    # classes are counted under all attacks
    for entry, label in zip(content['by_class'], (0, 1), strict=True):
        assert entry['robust']['correct'] == int(robust[y == label].sum())
        assert (entry['label'], entry['clean']['total']) == (label, int((y == label).sum()))


def test_an_image_that_is_wrong_without_attack_is_not_attacked_and_counts_as_wrong():
    class Valley(torch.nn.Module):
        """Class 1 where the pixel is further than 0.1 from 0.5."""

        def forward(self, x):
            seen.append(len(x))
            height = (x.flatten(1)[:, :1] - 0.5).abs() - 0.1
            return torch.cat([-height, height], 1)

    # one long step from 0.58, which is wrong, ends on the other side, which is right
    x, y, seen = torch.tensor([0.58, 0.05, 0.58, 0.95, 0.6]).view(5, 1, 1, 1), torch.tensor([1, 1, 1, 1, 0]), []
    attack = PGD(eps=0.3, steps=1, random_start=False)
    assert accuracy_under_attack(Valley(), x[:1], y[:1], attack=attack).correct == 1
    report = evaluate_robustness(Valley(), x, y, threat=ThreatModel(eps=0.3), pgd_steps=1, autoattack_version=None)
    counts = {name: part.accuracy for name, part in report.measurements.items()}
    assert counts == {'clean': Accuracy(2, 5), 'pgd': Accuracy(2, 5)} and report.counts_note == ''
    assert seen[-1] == 2 and report.by_class[1].robust == Accuracy(2, 4)
    nothing = evaluate_robustness(
        Valley(), x[::2], y[::2], threat=ThreatModel(eps=0.3), pgd_steps=1, autoattack_version=None)
    assert nothing.measurements['pgd'].accuracy == Accuracy(0, 3)


def test_a_report_at_chance_says_so_everywhere(ramp, capsys):
    model, x, y, _ = ramp
    for network, count in ((model, 0), (Normalized(model, [-0.6], [1.]), 1)):  # the second one sees bright images only
        report = evaluate_robustness(network, x, y, threat=ThreatModel(eps=0.1), autoattack_version=None)
        Console().print(report.table())
        shown = ' '.join(capsys.readouterr().out.split())
        assert report.page().count('is at chance') == shown.count('is at chance') == count
        assert len(report.to_dict().get('warnings', ())) == count


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


def measured(model, x, y, **settings):
    return evaluate_robustness(
        model, x, y, **{'threat': ThreatModel(eps='0.055'), 'pgd_steps': 5, 'batch_size': 5, **settings})


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_and_images_of_different_dtypes(dtype, ramp):
    model, x, y, _ = ramp
    model.to(dtype)
    threat = ThreatModel(eps='0.055')
    for call in (lambda: measured(model, x, y), lambda: robustness_curve(model, x, y, eps=[0.1]),
                 lambda: check_trust(model, x, y, threat=threat)):
        with pytest.raises(ValueError, match=f'weights are {dtype}.*model.float'):
            call()
    assert dtype != torch.float64 or measured(model, x.double(), y).measurements['clean'].accuracy.correct == 41


def test_time_left_does_not_jump(ramp, monkeypatch):
    """Against the passes that are still to come: from the first attacked batch on, over PGD and all of AutoAttack."""
    model, x, y, _ = ramp
    model, seen = Ticking(model), []
    monkeypatch.setattr('time.monotonic', lambda: model.time)
    report = measured(model, x, y, progress=lambda *args: seen.append((model.time, *args)))
    names = list(dict.fromkeys(name for _, name, *_ in seen))
    assert names == ['clean', 'PGD-5', 'apgd-ce', *report.measurements['autoattack'].details['components'][1:]]
    known = [(now, left) for now, name, _, _, _, left in seen if name != 'clean']
    assert all(np.isnan(left) for _, name, _, _, _, left in seen if name == 'clean')
    for now, left in known:
        truth = model.time - now
        if truth > model.time / 20:
            assert truth / 3 < left < 3 * truth
    for (_, one), (_, other) in itertools.pairwise(known):
        assert other < 2 * one + 50


@pytest.mark.parametrize('batches', [1, 9, 12, 18, 20])
def test_an_interrupted_measurement_repeats_no_batch(ramp, tmp_path, batches):
    """In the clean part (9 batches), in PGD (9) and in AutoAttack; then the report is that of a whole run."""
    model, x, y, _ = ramp
    whole, calls = Ticking(model), []

    def stop(*args):
        calls.append(args)
        if len(calls) == batches:
            raise KeyboardInterrupt

    expected = measured(whole, x, y).to_dict()
    first, second = Ticking(model), Ticking(model)
    with pytest.raises(KeyboardInterrupt):
        measured(first, x, y, state=tmp_path / 'state', progress=stop)
    found = measured(second, x, y, state=tmp_path / 'state').to_dict()
    for name in ('clean', 'pgd', 'autoattack', 'worst_case'):
        assert (found[name]['correct'], found[name]['total']) == (expected[name]['correct'], expected[name]['total'])
    done = min(batches, 9) * 5 + max(0, min(batches, 18) - 9) * 5 * 11
    assert second.time <= whole.time - done + 50  # checks of the model take a few passes
    with pytest.raises(ValueError, match='seed 0 instead of 1'):
        check_state(
            tmp_path / 'state', model, x, y, threat=ThreatModel(eps='0.055'), pgd_steps=5, seed=1, batch_size=5,
            autoattack_version='standard', attacks=None, n_pgd=None, n_examples=None, device=torch.device('cpu'))


@pytest.mark.parametrize('n_pgd, n_examples, attacked', [(7, None, 41), (7, 3, 7), (3, 7, 7), (99, 5, 41)])
def test_number_of_images_of_each_attack(ramp, n_pgd, n_examples, attacked):
    model, x, y, distance = ramp
    report = measured(model, x, y, n_pgd=n_pgd, n_examples=n_examples)
    robust = (distance > 0.055).int()
    for name, count in (('clean', 41), ('pgd', min(n_pgd, 41)), ('autoattack', n_examples or 41)):
        found = report.measurements[name].accuracy
        assert found == Accuracy(count if name == 'clean' else int(robust[:count].sum()), count)
    worst = report.measurements['worst_case'].accuracy
    assert worst == Accuracy(int(robust[:n_examples].sum()), n_examples or 41)
    assert sum(entry.robust.total for entry in report.by_class) == attacked
    assert sum(entry.robust.correct for entry in report.by_class) == int(robust[:attacked].sum())


def test_parts_of_autoattack(ramp):
    found = measured(*ramp[:3], autoattack_version='custom', attacks=['apgd-ce', 'square']).measurements['autoattack']
    assert (found.details['version'], found.details['components']) == ('custom', ['apgd-ce', 'square'])
