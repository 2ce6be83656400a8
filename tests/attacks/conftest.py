import pytest
import torch
from torch import nn


def learned_network(channels=1, classes=10):
    """A small network in train mode after a short training, and images that it mostly classifies correctly."""
    torch.manual_seed(0)
    x, y = torch.rand(120, channels, 8, 8), torch.arange(120) % classes
    x = (0.75 * x + 0.25 * torch.rand(classes, channels, 8, 8)[y]).contiguous()
    x[:, :, :2] = x[:, :, :2].round()  # pixels at 0 and 1, as in real images
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(512, classes))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x[:18], y[:18]


@pytest.fixture(scope='session')
def learned():
    return learned_network


@pytest.fixture(scope='module')
def trained():
    return learned_network(classes=5)


@pytest.fixture
def short(shorten_autoattack):
    """The package with a tenth of its iterations."""
    def change(self):
        for apgd in (self.apgd, self.apgd_targeted):
            apgd.n_iter = apgd.n_iter_orig = 8
            apgd.n_iter_2, apgd.n_iter_min, apgd.size_decr = 2, 1, 1
        self.apgd.n_restarts = min(self.apgd.n_restarts, 2)
        self.fab.n_iter, self.fab.n_restarts = 4, min(self.fab.n_restarts, 2)
        self.square.n_queries = 50
        self.apgd_targeted.n_target_classes = self.fab.n_target_classes = 4

    shorten_autoattack(change)
