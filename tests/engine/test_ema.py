"""The average of the weights."""
import pytest
import torch
from tiny_run import prepared, trained
from torch import nn

from timm_paf.engine import EMA
from timm_paf.engine.step import batches_from


def test_average_without_decay_is_the_weights(tmp_path):
    flags = ['--model-ema', '--model-ema-decay']
    for model in ('tiny_smooth', 'tiny_norm'):
        raw = trained(tmp_path, *flags, '0', model=model)
        assert torch.equal(raw, trained(tmp_path, *flags, '0', key='state_dict_ema', model=model))
    assert not torch.equal(raw, trained(tmp_path, *flags, '0.5', key='state_dict_ema', model='tiny_norm'))


def test_average_follows_its_rule_and_copies_buffers(tmp_path):
    """Against the rule written out: copies first, then min(tau, (1 + n) / (10 + n))."""
    flags = ['--model-ema', '--model-ema-decay', '0.3', '--model-ema-warmup', '--model-ema-copy', '0.25']
    trainer = prepared(tmp_path, *flags, model='tiny_norm')
    expected = dict(trainer.task.trainable_module.state_dict())
    for update, batch in enumerate(batches_from(trainer.data, 0, 8)):
        trainer.step(batch, update)
        n = update - 3  # a quarter of twelve updates
        decay = 0. if n < 0 else min(0.3, (1 + n) / (10 + n))
        for name, value in trainer.task.trainable_module.state_dict().items():
            if isinstance(trainer.task.trainable_module.get_submodule(name.rpartition('.')[0]), nn.BatchNorm2d) and (
                    'running' in name or 'num' in name):
                expected[name] = value.clone()
            else:
                expected[name] = decay * expected[name] + (1 - decay) * value
    average = trainer.task.trainable_module_ema.module.state_dict()
    assert average.keys() == expected.keys()
    for name, value in average.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
    assert torch.equal(average['norm.running_mean'], trainer.task.trainable_module.norm.running_mean)


@pytest.mark.parametrize('n, expected', [(0, 0.1), (1, 2 / 11), (80, 0.9), (2000, 0.995)])
def test_decay_of_the_average(n, expected):
    class Task:
        def setup_ema(self, **kwargs):
            return None

    assert EMA(Task(), decay=0.995, warmup=True, copied=7).decay_at(7 + n) == pytest.approx(expected)
    assert EMA(Task(), decay=0.995, warmup=True, copied=7).decay_at(6) == 0
