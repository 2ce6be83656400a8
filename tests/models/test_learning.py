"""A few steps of training on real images."""
import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch.nn import functional as F

from timm_paf import paf_parameters
from timm_paf.data import digits_splits


@pytest.mark.parametrize('name, steps', [
    ('resnet18_psilu', 12), ('preact_resnet18_pssilu', 12), ('wrn10_2_psoftplus', 12), ('vgg11_bn_pssilu', 12),
    ('vgg11_prelu0', 40),  # without normalisation the first steps lead nowhere
    ('resnet18_224_reblu', 12)])
def test_loss_falls_on_digits_and_the_activation_learns(name, steps):
    train = digits_splits().train
    model = timm.create_model(name, in_chans=1, num_classes=10)
    start = {key: p.item() for key, p in paf_parameters(model).items()}
    optimizer = create_optimizer_v2(model, opt='adamw', lr=1e-3, weight_decay=0.)
    losses = []
    for step in range(steps):
        x, y = train.take(torch.arange(64 * step, 64 * step + 64) % len(train))
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.85 * sum(losses[:3])
    assert all(p.item() != start[key] for key, p in paf_parameters(model).items())
