"""Networks to convert, and what of them the tests look at."""
import timm
import torch
from torch import nn
from torch.nn import functional as F

from timm_paf.activations import ParametricActivation


def build(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **kwargs).eval()


def output_of(model, size=64):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.rand(2, 3, size, size))


def pafs(model):
    return [m for m in model.modules() if isinstance(m, ParametricActivation)]


def places(report):
    return [item.name for item in report.replaced]


class Functional(nn.Module):
    """Every way of having an activation without a module of its own."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.activation = F.relu
        self.gate = nn.Sigmoid()

    def forward(self, x):
        x = self.activation(self.fc1(x), inplace=True)
        x = F.gelu(self.fc2(x))
        return self.gate(self.fc3(x).relu())
