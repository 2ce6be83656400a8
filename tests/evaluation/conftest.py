"""Small networks for digits, trained in seconds, and a linear model whose robustness is known exactly."""
import pytest
import torch
from torch import nn

from timm_paf.attacks import PGD
from timm_paf.data import digits_splits


def train(steps, eps):
    """A convolutional network, trained plainly (eps 0) or on PGD-5 images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32), nn.SiLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(),
        nn.Linear(128, 10))
    data = digits_splits().train
    images, labels = torch.as_tensor(data.images), torch.as_tensor(data.labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    attack = PGD(eps=eps, steps=5) if eps else None
    for _ in range(steps):
        chosen = torch.randint(len(images), (128,))
        x, y = images[chosen], labels[chosen]
        if attack is not None:
            x = attack(model, x, y)
        loss = nn.functional.cross_entropy(model.train()(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


@pytest.fixture
def short_autoattack(shorten_autoattack):
    """AutoAttack's components with a tenth of their iterations."""
    def change(self):
        self.square.n_queries = 500
        for apgd in (self.apgd, self.apgd_targeted):
            apgd.n_iter = apgd.n_iter_orig = 10

    shorten_autoattack(change)


@pytest.fixture(scope='session')
def digits():
    """Test images (360, 1, 8, 8) and labels."""
    test = digits_splits().test
    return torch.as_tensor(test.images), torch.as_tensor(test.labels)


robust_network = pytest.fixture(scope='session', name='robust_network')(lambda: train(250, 0.1))
plain_network = pytest.fixture(scope='session', name='plain_network')(lambda: train(200, 0))  # accurate, not robust


@pytest.fixture
def ramp():
    """A model, images (41, 1, 4, 4), labels, and the largest eps at which each image is robust.

    There are two classes, split at mean pixel 1/2.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(16), torch.full((16,), 10 / 16)]))
        model[1].bias.copy_(torch.tensor([0., -5.]))
    x = torch.linspace(0.3, 0.7, 41)[:, None, None, None].expand(41, 1, 4, 4).contiguous()
    return model, x, (x[:, 0, 0, 0] > 0.5).long(), (x[:, 0, 0, 0] - 0.5).abs()
