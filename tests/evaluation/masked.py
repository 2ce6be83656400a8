"""Networks with masked gradients, of the kinds that have misled evaluations."""
import torch
from torch import nn


class Round(torch.autograd.Function):
    """Rounds; its gradient is zero."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class Quantised(nn.Module):
    """A network after rounding of the pixels to a few levels."""

    def __init__(self, network, levels=8):
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, x):
        return self.network(torch.round(x * self.levels) / self.levels)


class SignFeatures(nn.Module):
    """A classifier on signs: piecewise constant."""

    def __init__(self):
        super().__init__()
        self.features, self.classifier = nn.Linear(64, 512), nn.Linear(512, 10)

    def forward(self, x):
        return self.classifier(torch.sign(self.features(x.flatten(1) - 0.5)))

    def fit(self, x, y):
        """Least squares on the signs."""
        with torch.no_grad():
            signs = torch.sign(self.features(x.flatten(1) - 0.5))
            target = nn.functional.one_hot(y, 10).float()
            weight = torch.linalg.solve(signs.T @ signs + 30 * torch.eye(512), signs.T @ target)
            self.classifier.weight.copy_(weight.T)
            self.classifier.bias.zero_()
        return self


class Saturated(nn.Module):
    """Logits times a factor at which softmax is exactly 0 or 1."""

    def __init__(self, network, scale=1e5):
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x):
        return self.network(x) * self.scale


class Noisy(nn.Module):
    """Random noise on the pixels in every pass."""

    def __init__(self, network, sigma=0.2):
        super().__init__()
        self.network, self.sigma = network, sigma

    def forward(self, x):
        return self.network(x + self.sigma * torch.randn_like(x))


class Detached(nn.Module):
    """An operation outside of autograd, like a call of another library."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(torch.from_numpy(x.detach().cpu().numpy().copy()).to(x))


class NaNSlope(nn.Module):
    """Adds 0 times a root whose slope at 0 is infinite."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x) + 0 * (x - x).sqrt().sum((1, 2, 3))[:, None]


class Shattered(nn.Module):
    """A fast ripple on the pixels: gradients exist but do not point to adversarial images."""

    def __init__(self, network, amplitude=0.02, frequency=3000.):
        super().__init__()
        self.network, self.amplitude, self.frequency = network, amplitude, frequency

    def forward(self, x):
        return self.network(x + self.amplitude * torch.sin(self.frequency * x))
