"""AutoAttack in a measurement: saved, resumed, shared between processes."""
import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from tiny_run import RECIPES

from timm_paf.data import open_dataset
from timm_paf.engine import validate as validate_command


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A network that has learned the digits a little, and says what it was trained on."""
    path = tmp_path_factory.mktemp('checkpoint') / 'weights.pth.tar'
    data = open_dataset('digits').train
    torch.manual_seed(0)
    model = timm.create_model('wrn10_2_psilu', num_classes=10, in_chans=1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, y = data.images.float() / (255 if data.images.dtype == torch.uint8 else 1), data.labels
    for step in range(24):
        batch = torch.arange(64 * step, 64 * step + 64) % len(x)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    torch.save({'state_dict': model.state_dict(), 'args': {
        'model': 'wrn10_2_psilu', 'dataset': 'digits', 'eps': '0.02'}}, path)
    return path


def argv(checkpoint, *more):
    return ['--checkpoint', str(checkpoint), '--device', 'cpu', '--no-trust', '--no-html',
            '--autoattack', 'rand', '--n-examples', '6', '--eval-batch-size', '3', '--pgd-steps', '2', *map(str, more)]


def validate(checkpoint, *more):
    return validate_command(argv(checkpoint, *more))


@pytest.fixture
def short(shorten_autoattack):
    """AutoAttack with few steps."""
    def change(self):
        self.apgd.n_iter = self.apgd.n_iter_orig = 4
        self.apgd.eot_iter = 1

    shorten_autoattack(change)


def test_attack_pgd_leaves_autoattack_out(checkpoint, tmp_path):
    assert validate(checkpoint, '--attack', 'pgd', '--output', tmp_path) == 0
    report = json.loads((tmp_path / 'report.json').read_text())
    assert 'pgd' in report and not {'autoattack', 'trust'} & set(report)
    assert [path.name for path in tmp_path.iterdir()] == ['report.json']


def test_interrupted_run_goes_on(checkpoint, tmp_path, short, monkeypatch, capsys):
    output, images = tmp_path / 'validation', tmp_path / 'adv.npz'
    more = ['--output', output, '--save-adv', images]

    def interrupt(self, component, done, total, standing, left):
        if component == 'apgd-ce':
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('timm_paf.engine.progress.AttackView.progress', interrupt)
        assert validate(checkpoint, *more) == 130
    assert sorted(path.name for path in output.iterdir()) == ['autoattack'] and not images.exists()

    assert validate(checkpoint, *more) == 2
    assert 'resume it with --resume' in capsys.readouterr().err
    before = {path: path.read_bytes() for path in (output / 'autoattack').rglob('*') if path.is_file()}
    capsys.readouterr()
    for change, message in ((['--seed', '5'], 'seed 0 instead of 5'), (['--n-examples', '5'], 'other images')):
        assert validate(checkpoint, *more, '--resume', *change) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith('error: state ') and error.count('\n') == 1
    assert {path: path.read_bytes() for path in before} == before

    images.write_bytes(b'')  # as if the interrupt had come after AutoAttack
    assert validate(checkpoint, *more, '--resume') == 0
    assert sorted(path.name for path in output.iterdir()) == ['report.json', 'verdicts.csv']
    assert validate(checkpoint, '--output', tmp_path / 'whole') == 0
    reports = [json.loads((folder / 'report.json').read_text()) for folder in (output, tmp_path / 'whole')]
    assert reports[0]['autoattack']['correct'] == reports[1]['autoattack']['correct']
    rows = list(csv.DictReader((output / 'verdicts.csv').read_text().splitlines()))
    assert sum(int(row['autoattack']) for row in rows) == reports[0]['autoattack']['correct'] and len(rows) == 6
    with np.load(images) as content:
        assert content['image'].shape == (6, 1, 8, 8)



def without_times(value):
    """A report without what depends on the clock."""
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in ('seconds', 'created')}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_torchrun_gives_the_same_report(checkpoint, tmp_path):
    """All of it, up to times; one process writes and speaks."""
    corruptions = tmp_path / 'corruptions'
    corruptions.mkdir()
    test = open_dataset('digits').test
    images = (test.images[:20].float() * 255).byte().permute(0, 2, 3, 1).numpy()
    np.save(corruptions / 'fog.npy', np.concatenate([images // level for level in range(1, 6)]))
    np.save(corruptions / 'labels.npy', test.labels[:20].numpy())
    more = ['--eps-curve', '0,0.01,0.02,0.05', '--n-curve', '40', '--corruptions', corruptions, '--trust', '--n-trust',
            '6', '--html', '--eval-batch-size', '25', '--n-examples', '30']
    reports, pages = [], []
    for count in (1, 2):
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(count)]
        output, images = tmp_path / str(count), tmp_path / f'{count}.npz'
        result = subprocess.run(
            [*command, str(RECIPES / 'adv_validate.py'),
             *argv(checkpoint, *more, '--output', output, '--save-adv', images)],
            capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        assert result.returncode == 0, result.stderr
        assert result.stdout.count('AutoAttack rand') == 1
        assert sorted(path.name for path in output.iterdir()) == ['report.html', 'report.json', 'verdicts.csv']
        reports.append(without_times(json.loads((output / 'report.json').read_text())))
        pages.append((output / 'verdicts.csv').read_text())
        with np.load(images) as content:
            pages.append({name: content[name].tolist() for name in content})
    assert {'trust', 'curve', 'corruptions', 'worst_case'} <= set(reports[0])
    assert 0 < reports[0]['autoattack']['correct'] < reports[0]['pgd']['correct'] < 360
    assert reports[0] == reports[1] and pages[:2] == pages[2:]
