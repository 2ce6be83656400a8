"""A small network without batch normalisation, and one with it."""
from collections import OrderedDict

import pytest
import torch
from torch import nn

from timm_paf.activations import PSSiLU


def small_network(norm=False, dtype=torch.float32):
    """conv, PSSiLU, conv, PSSiLU, linear on (B, 1, 8, 8) images and four classes."""
    torch.manual_seed(1)
    act = PSSiLU(alpha=2., beta=0.1)
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(1, 6, 3, stride=2), norm1=nn.BatchNorm2d(6) if norm else nn.Identity(), act1=act,
        conv2=nn.Conv2d(6, 8, 3), act2=act, flatten=nn.Flatten(), fc=nn.Linear(8, 4))).to(dtype)


@pytest.fixture
def network():
    return small_network


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    return torch.rand(8, 1, 8, 8, generator=generator), torch.arange(8) % 4
