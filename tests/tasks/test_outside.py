"""Tasks without the engine: a plain training loop, and the calls of timm's train.py."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, NativeScaler

from timm_paf.attacks import PGD
from timm_paf.data import digits_splits
from timm_paf.tasks import TaskOptions, create_task

EPS = 0.1


def digits(count):
    train = digits_splits().train
    return train.images[:count], train.labels[:count]


@pytest.mark.parametrize('compiled', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_as_timms_train_script_does(compiled, tmp_path, reference):
    """Optimizer, average, compile, scaler, clipping, checkpoint and its way back, in the order of train.py."""
    x, y = digits(64)

    def build():
        torch.manual_seed(0)
        model = timm.create_model('wrn10_2_pssilu', in_chans=1)
        return create_task('trades', model, PGD(eps=EPS, steps=2, loss='kl'), options=TaskOptions(awp_gamma=0.005))

    task = build()
    optimizer = create_optimizer_v2(task.trainable_module, opt='sgd', lr=0.05, momentum=0.9)
    task.attach_optimizer(optimizer)
    task.setup_ema(decay=0.9)
    if compiled:
        task.compile(backend='eager')
    scaler = NativeScaler(device='cpu')
    saver = CheckpointSaver(
        model=task.get_trainable_module(), optimizer=optimizer, args=None, checkpoint_dir=str(tmp_path), task=task)
    task.train()
    losses = []
    for update in range(6):
        for half, last in zip(zip(x.chunk(2), y.chunk(2), strict=True), (False, True), strict=True):
            with task.no_sync():
                result = task(*half)
            scaler(
                result['loss'] / 2, optimizer, clip_grad=1., parameters=task.get_clip_parameters(), need_update=last)
        losses.append(result['loss'].item())
        optimizer.zero_grad()
        task.update_ema(step=update + 1)
    assert losses[-1] < losses[0]
    saver.save_checkpoint(0, metric=1.)

    saved = torch.load(tmp_path / 'last.pth.tar')
    again = build()
    again.load_checkpoint_state(saved['state_dict'])
    again.setup_ema()
    again.load_checkpoint_state(saved['state_dict_ema'], ema=True)
    for ema in (False, True):
        model, reloaded = task.get_eval_model(ema=ema).eval(), again.get_eval_model(ema=ema).eval()
        assert torch.equal(reloaded(x), model(x))
    keys = list(saved['state_dict'])
    assert not any('_orig_mod' in key or 'module.' in key for key in keys) and keys == list(saved['state_dict_ema'])


def test_without_the_optimizer_attached_beta_stays_in_its_range():
    """Timm's train.py does not call `attach_optimizer`; the next step and the average project instead."""
    model = timm.create_model('wrn10_2_pssilu', in_chans=1)
    task = create_task('plain', model)
    task.setup_ema(decay=0.)
    beta = model.layer1[0].act1.beta
    beta.data.fill_(30.)  # as an optimizer step could
    assert task(*digits(16))['loss'].isfinite() and beta.item() == 0.5
    beta.data.fill_(-30.)
    task.update_ema(step=1)
    assert task.trainable_module_ema.module.layer1[0].act1.beta.item() == -0.5
