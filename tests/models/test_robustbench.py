import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional, Union

import pytest
import timm
import torch
from pyautoattack import AutoAttack
from torch import nn

import timm_paf  # noqa: F401
from timm_paf.models import to_robustbench

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def model(name='wrn10_2_pssilu', **kwargs):
    return timm.create_model(name, **kwargs)


class Attack(AutoAttack):
    """The interface of the original AutoAttack that `benchmark` uses, implemented with pyautoattack."""

    def __init__(self, model, norm, eps, version, device, log_path):
        super().__init__(model, norm=norm, eps=eps, version='custom', attacks=['apgd-ce'], device=device, seed=0)
        self.apgd.n_iter = 3

    def run_standard_evaluation(self, x, y, bs, state_path):
        return super().run_standard_evaluation(x, y, batch_size=bs)[0]


def test_benchmark_takes_it_unchanged(robustbench):
    x, y = torch.rand(6, 3, 32, 32), torch.arange(6)
    names = dict(
        torch=torch, nn=nn, math=math, warnings=warnings, Union=Union, Sequence=Sequence, Optional=Optional, Path=Path,
        Tuple=tuple, Callable=Callable, **vars(robustbench('model_zoo/enums.py')))
    names['clean_accuracy'] = robustbench.function('utils.py', 'clean_accuracy', **names)
    benchmark = robustbench.function(
        'eval.py', 'benchmark', **names, AutoAttack=Attack,
        get_preprocessing=lambda *args: None, load_clean_dataset=lambda *args: (x, y))
    adapted = to_robustbench(model())
    y[:3] = adapted(x[:3]).argmax(1)
    clean, robust = benchmark(adapted, n_examples=6, threat_model='Linf', eps=8 / 255)  # warnings are errors here
    assert clean == (adapted(x).argmax(1) == y).float().mean().item() and clean >= max(0.5, robust)


def test_pyautoattack_takes_it_unchanged(caplog):
    adapted = to_robustbench(model(in_chans=1))
    attack = AutoAttack(adapted, eps=0.5, version='custom', attacks=['apgd-ce', 'square'], device='cpu', seed=0)
    attack.apgd.n_iter, attack.square.n_queries = 5, 5
    x = torch.rand(8, 1, 8, 8)
    y = adapted(x).argmax(1)
    x_adv, _ = attack.run_standard_evaluation(x, y)
    assert (adapted(x_adv).argmax(1) != y).any()  # gradients come through: half of the range is enough to fool it
    assert not [record for record in caplog.records if record.levelname == 'WARNING']  # its checks found nothing odd


def test_a_frozen_float32_copy_and_the_model_left_as_it_was():
    original = model().train().to(torch.bfloat16)
    adapted = to_robustbench(original)
    assert original.training and original.fc.weight.dtype == torch.bfloat16 and original.fc.weight.requires_grad
    assert not any(m.training for m in adapted.modules())
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in adapted.parameters())
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    plain = adapted(x)
    plain.sum().backward()
    assert x.grad.abs().sum() > 0
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(adapted(x), plain)
    assert adapted(x.double()).dtype == plain.dtype == torch.float32


@pytest.mark.parametrize('x, message', [
    (torch.full((1, 3, 8, 8), 255.), 'images from 255 to 255'),
    (torch.full((1, 3, 8, 8), -0.1), 'images from -0.1'),
    (torch.full((1, 3, 8, 8), math.nan), 'images from nan'),
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 'torch.uint8: expected floats'),
    (torch.zeros(3, 8, 8), r'shape \(3, 8, 8\)'),
], ids=['bytes', 'below', 'nan', 'dtype', 'shape'])
def test_bad_images(x, message):
    with pytest.raises(ValueError, match=message):
        to_robustbench(model())(x)


def test_normalisation_outside_of_the_model():
    stock = model('resnet18', num_classes=10)  # stock timm: normalised by the loader
    with pytest.raises(ValueError, match='pass them as mean= and std='):
        to_robustbench(stock)
    x = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(to_robustbench(stock, mean=MEAN, std=STD)(x), stock.eval()((x - mean) / std))
    torch.testing.assert_close(to_robustbench(stock, mean=(0,) * 3, std=(1,) * 3)(x), stock(x))
    inside = model(input_mean=MEAN, input_std=STD).eval()  # needs nothing
    with pytest.raises(ValueError, match='already'):
        to_robustbench(inside, mean=MEAN, std=STD)
    torch.testing.assert_close(to_robustbench(inside)(x), inside(x))
