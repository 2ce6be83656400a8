"""The average of the weights."""
import torch
from tiny_run import prepared
from torch import nn

from timm_paf.engine.step import batches_from


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
