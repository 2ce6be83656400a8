"""Validation between epochs and the choice of the best one."""
import dataclasses
import json

import pytest
import torch
from tiny_run import prepared, rows_of, train, updated

from timm_paf._distributed import Processes
from timm_paf.engine.validation import selection, selection_lines, validate


def test_validation_now_and_then_and_at_the_end(tmp_path):
    assert train(tmp_path, '--epochs', '5', '--val-interval', '2', '--val-attack-steps', '1') == 0
    rows = rows_of(tmp_path / 'run')
    assert [bool(row['eval_robust']) for row in rows] == [False, True, False, True, True]


def test_validation_attack_is_its_own(tmp_path):
    trainer = prepared(tmp_path, '--val-attack-steps', '7')
    assert (trainer.config.validation_attack(0).steps, trainer.task.attack.steps) == (7, 2)
    step = prepared(tmp_path, '--val-attack-step-size', '1/100').config.validation_attack(0).step_size
    assert step == pytest.approx(0.01)


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    """A run whose network knows the digits a little; its validation attack is weak, so that the start decides a lot."""
    trainer = prepared(
        tmp_path_factory.mktemp('learned'), '--task', 'plain', '--updates-per-epoch', '100', '--lr', '0.1', '--eps',
        '0.2', '--val-attack-steps', '1', '--val-attack-step-size', '0.05')
    return updated(trainer, 100)


def counts(trainer, monkeypatch, *, ranks=1, **settings):
    """Accuracies of validation, from the shares of all ranks in turn."""
    monkeypatch.setattr(Processes, 'all_reduce_sum', lambda self, values: values)
    config = dataclasses.replace(trainer.config, dist_bn='none', **settings)
    shares = [validate(
        trainer.task, trainer.val, config, dataclasses.replace(trainer.processes, rank=rank, world_size=ranks),
        precision=trainer.step.precision) for rank in range(ranks)]
    return {name: round(sum(share[name] for share in shares) * len(trainer.val) / 100) for name in ('clean', 'robust')}


@pytest.mark.parametrize('ranks, size', [(1, 1), (1, 7), (1, 64), (2, 7), (3, 64), (200, 5)])
def test_validation_counts_do_not_depend_on_processes_and_batches(learned, monkeypatch, ranks, size):
    """Of 200 processes some have no image."""
    whole = counts(learned, monkeypatch, eval_batch_size=180)
    assert counts(learned, monkeypatch, ranks=ranks, eval_batch_size=size) == whole
    assert len({counts(learned, monkeypatch, seed=seed)['robust'] for seed in range(8)}) > 1


def test_best_of_raw_and_averaged_weights_and_the_gap(tmp_path):
    flags = ['--model-ema', '--model-ema-decay', '0.6', '--epochs', '5', '--lr', '0.3', '--sched', 'none',
             '--updates-per-epoch', '20']
    assert train(tmp_path, *flags) == 0
    folder, rows = tmp_path / 'run', rows_of(tmp_path / 'run')
    found = json.loads((folder / 'selection.json').read_text())
    assert found['selected'] == 'ema'
    for weights, column, name in (('ema', 'eval_robust', 'model_best'), ('raw', 'eval_robust_raw', 'model_best_raw')):
        values = [float(row[column]) for row in rows]
        best = values.index(max(values))
        assert found[weights]['best'] == {'epoch': best, 'robust': max(values)}
        assert found[weights]['gap'] == pytest.approx(max(values) - values[-1])
        assert torch.load(folder / f'{name}.pth.tar', weights_only=True)['epoch'] == best
    assert 'state_dict_ema' not in torch.load(folder / 'model_best_raw.pth.tar', weights_only=True)


def test_gap_between_best_and_last():
    rows = [{'epoch': e, 'eval_robust': v} for e, v in enumerate([10., 50., 50., None, 42.])]
    found = selection(rows, metric='robust', averaged=False)
    assert found == {'metric': 'robust', 'selected': 'raw', 'raw': {
        'best': {'epoch': 1, 'robust': 50.}, 'last': {'epoch': 4, 'robust': 42.}, 'gap': 8.}}
    (line,) = selection_lines(found, 'under PGD-2')
    assert line.endswith('epoch 2, 50.0 % under PGD-2; the last epoch is 8.0 points below')
    found = selection(rows[:2], metric='robust', averaged=False)
    assert selection_lines(found, 'under PGD-2')[0].endswith('epoch 2, 50.0 % under PGD-2; it is the last one')


def test_best_checkpoints_are_kept_by_number(tmp_path):
    assert train(tmp_path, '--epochs', '6', '--checkpoint-hist', '2') == 0
    rows = sorted(rows_of(tmp_path / 'run'), key=lambda row: (-float(row['eval_robust']), int(row['epoch'])))
    kept = {path.name for path in (tmp_path / 'run').glob('checkpoint-*')}
    assert {f'checkpoint-{row["epoch"]}.pth.tar' for row in rows[:2]} <= kept and len(kept) <= 4
