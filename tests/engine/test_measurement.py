"""Measurement of a checkpoint in addition to the attacks, its files, and its errors."""
import json

import numpy as np
import pytest
import timm
import torch

from timm_paf._files import file_sha256
from timm_paf.attacks import ThreatModel
from timm_paf.data import digits_splits
from timm_paf.engine import ValidateConfig
from timm_paf.engine import validate as validate_command
from timm_paf.engine.measurement import with_training_settings

ENTRY = ['--robustbench-link', 'https://arxiv.org/abs/2110.05626', '--robustbench-name', 'A title',
         '--robustbench-authors', 'A B, C D', '--robustbench-venue', 'arXiv, Oct 2021',
         '--no-robustbench-additional-data']
SAVED = ['--autoattack', 'standard']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A checkpoint as adv_train.py writes it, of an untrained network."""
    folder = tmp_path_factory.mktemp('run')
    torch.manual_seed(0)
    model = timm.create_model('wrn10_2_relu', in_chans=1)
    torch.save({
        'state_dict': model.state_dict(), 'arch': 'wrn10_2_relu', 'epoch': 0,
        'args': {'model': 'wrn10_2_relu', 'dataset': 'digits', 'eps': '0.1'}}, folder / 'model_best.pth.tar')
    return folder / 'model_best.pth.tar'


def validate(checkpoint, *argv):
    arguments = ['--checkpoint', str(checkpoint), '--pgd-steps', '2', '--autoattack', 'none', '--device', 'cpu', *argv]
    return validate_command(arguments)


def corruption_folder(folder, *, shape=(8, 8, 1), top=9):
    folder.mkdir()
    labels = np.arange(20) % 10
    labels[0] = top
    np.save(folder / 'labels.npy', labels)
    np.save(folder / 'fog.npy', np.zeros((100, *shape), np.uint8))
    return folder


@pytest.fixture
def next_to(checkpoint):
    """Writes a report of a training run next to the checkpoint, with its SHA-256 or another one."""
    path = checkpoint.parent / 'report.json'
    yield lambda sha256: path.write_text(json.dumps({
        'model': 'wrn10_2_relu', 'dataset': 'digits', 'split': 'test', 'checkpoint_sha256': sha256,
        'clean': {'correct': 360, 'total': 360}}))
    path.unlink()


def test_everything_that_was_asked_for_is_in_the_report(checkpoint, next_to, tmp_path, capsys):
    folder = corruption_folder(tmp_path / 'c')
    next_to(file_sha256(checkpoint))
    assert validate(
        checkpoint, '--eps-curve', '0,1/255', '0.1', '--n-curve', '20', '--corruptions', str(folder), '--n-trust',
        '8', '--output', str(tmp_path / 'out')) == 0
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert ThreatModel(eps=report['trust']['eps']).radius == report['pgd']['eps_value'] == 0.1
    assert [point['eps'] for point in report['curve']['points']] == ['0', '1/255', '0.1']
    assert report['curve']['points'][0]['worst']['total'] == 20
    assert report['corruptions']['total'] == 100 and report['trust']['images'] == 8
    assert sum(entry['clean']['total'] for entry in report['by_class']) == 360
    low, high = report['clean']['interval']
    assert low < report['clean']['correct'] / report['clean']['total'] < high
    # the run that wrote 360 of 360 beside the checkpoint cannot have had these weights
    checks = {check['name']: check for check in report['trust']['checks']}
    assert checks['training report']['status'] == 'warn' and '360 / 360' in checks['training report']['finding']
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert page.startswith('<!DOCTYPE html>') and report['checkpoint_sha256'] in page
    assert 'trust checks' in capsys.readouterr().out


def test_a_report_of_other_weights_is_not_compared_with(checkpoint, next_to, tmp_path):
    next_to('other')
    assert validate(checkpoint, '--n-trust', '4', '--no-html', '--output', str(tmp_path)) == 0
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['trust']['checks'][-1]['status'] == 'skip' and not (tmp_path / 'report.html').exists()




def test_robustbench_entry_with_what_is_in_its_way(checkpoint, tmp_path, capsys):
    path = tmp_path / 'Name2021Title.json'
    assert validate(
        checkpoint, '--autoattack', 'rand', '--n-examples', '2', '--no-trust', '--robustbench-json', str(path),
        *ENTRY, '--robustbench-architecture', 'Wide', '--robustbench-reported', '61.5', '--robustbench-footnote',
        'A remark.') == 0
    entry = json.loads(path.read_text())
    assert (entry['link'], entry['name'], entry['venue']) == (
        'https://arxiv.org/abs/2110.05626', 'A title', 'arXiv, Oct 2021')
    assert (entry['architecture'], entry['reported'], entry['footnote']) == ('Wide', '61.5', 'A remark.')
    assert (entry['authors'], entry['additional_data'], entry['eps']) == ('A B, C D', False, '0.1')
    output = capsys.readouterr().out
    assert 'no data set digits' in output and 'AutoAttack standard, not rand' in output


@pytest.mark.parametrize('argv, message', [
    (['--eps', '8'], 'Did you mean 8/255'), (['--eps-curve', '0,2,4'], '--eps-curve = 2: pixels are in [0, 1]'),
    (['--eps-curve', '0.1,0.1'], 'expected each radius once'), (['--html'], '--html writes next to report.json'),
    (['--corruptions', 'NOWHERE'], 'there is no labels.npy'),
    (['--corruptions', 'COLOUR'], 'holds images (3, 8, 8)'), (['--corruptions', 'LABELS'], 'expected 0 to 9'),
    (['--robustbench-json', 'x.json'], '--robustbench-link, --robustbench-name, --robustbench-authors'),
    (['--robustbench-venue', 'ICML 2030'], '--robustbench-venue needs --robustbench-json'),
    (['--resume'], '--resume needs --output'), (['--dataset', 'cifar'], "--dataset = 'cifar'"),
    (['--save-adv', 'TAKEN', *SAVED], 'exists already'), (['--save-adv', 'NOWHERE/x.npz', *SAVED], 'no such folder'),
    (['--save-adv', 'x.npz'], '--save-adv needs AutoAttack'), (['--torchcompile', 'inductr'], "backend = 'inductr'"),
    (['--save-adv', 'x.npz', '--attack', 'pgd', *SAVED], '--save-adv needs AutoAttack'),
    (['--checkpoint', ''], '--checkpoint is missing'), (['--checkpoint', 'NOWHERE'], 'there is no such file'),
    (['--robustbench-json', 'x.json', *ENTRY], '--robustbench-json needs AutoAttack'),
    (['--robustbench-json', 'TAKEN', *ENTRY], 'exists already'),
    (['--output', 'PAGE'], 'report.html exists already'),
    (['--output', 'TAKEN'], 'is a file; expected a folder'),
    (['--checkpoint', 'PAGE'], 'is a folder; give a file in it'), (['--checkpoint', 'TORN'], 'cannot be read'),
    (['--norm', 'l2'], 'was trained in linf; give --eps for l2'),
    (['--eps', '128', '--norm', 'l2'], '128/255'), (['--model', 'resnet18_relu'], 'does not fit CifarResNet'),
    (['--device', 'abacus'], 'not available'),
], ids=lambda value: ' '.join(value[:2]) if isinstance(value, list) else '')
def test_mistakes_are_told_before_anything_is_measured(checkpoint, tmp_path, capsys, argv, message):
    (tmp_path / 'taken.json').write_text('mine')
    (tmp_path / 'page').mkdir()
    (tmp_path / 'page' / 'report.html').write_text('mine')
    (tmp_path / 'torn').write_bytes(checkpoint.read_bytes()[:10_000])
    paths = {
        'TORN': tmp_path / 'torn', 'NOWHERE': tmp_path / 'nowhere', 'TAKEN': tmp_path / 'taken.json',
        'PAGE': tmp_path / 'page',
        'COLOUR': corruption_folder(tmp_path / 'colour', shape=(8, 8, 3)),
        'LABELS': corruption_folder(tmp_path / 'labels', top=10)}
    argv = [word if word not in paths else str(paths[word]) for word in argv]
    assert validate(checkpoint, *(word.replace('NOWHERE', str(paths['NOWHERE'])) for word in argv)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert (tmp_path / 'taken.json').read_text() == (tmp_path / 'page' / 'report.html').read_text() == 'mine'
    assert not (tmp_path / 'page' / 'report.json').exists()


@pytest.mark.parametrize('norm, eps, given', [
    ('l1', '8', {'eps': '12'}), ('l2', '0.5', {'eps': '1.5'}), ('l1', '8', {}), ('l1', '8', {'norm': 'l1'}),
    ('linf', '8/255', {'eps': '1.5', 'norm': 'l2'})], ids=str)
def test_the_radius_belongs_to_the_norm(norm, eps, given):
    trained = {'model': 'wrn10_2_relu', 'dataset': 'digits', 'eps': eps, 'norm': norm}
    config = with_training_settings(ValidateConfig(checkpoint='x', **given), trained)
    assert config.threat() == ThreatModel(**{'eps': eps, 'norm': norm, **given})


@pytest.mark.parametrize('change, message', [
    (lambda data: data.images.mul_(255), 'pixels in [0, 255]; expected [0, 1]'),
    (lambda data: data.images.fill_(torch.nan), 'expected [0, 1]'),
    (lambda data: data.labels.fill_(10), 'labels'),
], ids=['bytes', 'nan', 'labels'])
def test_images_and_labels_are_checked_first(checkpoint, tmp_path, capsys, monkeypatch, change, message):
    splits = digits_splits()
    change(splits.test)
    monkeypatch.setattr('timm_paf.engine.measurement.open_dataset', lambda *_, **__: splits)
    assert validate(checkpoint, '--output', str(tmp_path / 'out')) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1 and not (tmp_path / 'out').exists()


def test_a_network_of_nan_is_not_measured(checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict'] = {name: value * torch.nan if value.is_floating_point() else value
                             for name, value in content['state_dict'].items()}
    torch.save(content, tmp_path / 'nan.pth.tar')
    assert validate(tmp_path / 'nan.pth.tar', '--output', str(tmp_path / 'out')) == 2
    assert 'returns NaN or infinite logits' in capsys.readouterr().err and not (tmp_path / 'out').exists()
