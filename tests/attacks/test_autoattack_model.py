import pytest
import torch
from torch import nn

from timm_paf.attacks import autoattack, autoattack_model


class Ticking(nn.Module):
    """A model with a clock that ticks once per pass and image."""

    def __init__(self, model):
        super().__init__()
        self.model, self.time = model, 0.

    def forward(self, x):
        self.time += len(x) * (2 if x.requires_grad and torch.is_grad_enabled() else 1)
        return self.model(x)


def run(model, x, y, monkeypatch, *, eps, attacks):
    """The result, and the progress reports after the time of each."""
    model, seen = Ticking(model), []
    monkeypatch.setattr(autoattack_model.time, 'monotonic', lambda: model.time)
    monkeypatch.setattr(autoattack_model, '_INTERVAL', 0.)
    result = autoattack(model, x, y, eps=eps, version='custom', attacks=attacks, batch_size=5,
                        progress=lambda *args: seen.append((model.time, *args)))
    return result, seen, model.time


def test_progress_is_reported(trained, short, monkeypatch):
    model, x, y = trained
    result, seen, _ = run(model, x[:9], y[:9], monkeypatch, eps=0.06, attacks=['apgd-ce', 'apgd-t'])
    _, names, done, total, robust, left = zip(*seen, strict=True)
    ends = [s[1:4] for s in seen if s[2] == s[3]]
    assert ends == [(run.name, run.attacked, run.attacked) for run in result.runs]
    for name in ('apgd-ce', 'apgd-t'):
        numbers = [n for n, which in zip(done, names, strict=True) if which == name]
        assert numbers == sorted(numbers) and len(numbers) > 5  # inside batches too
    assert list(robust) == sorted(robust, reverse=True)
    assert robust[0] == total[0] == int(result.clean.sum()) and robust[-1] == int(result.robust.sum())
    assert left[-1] == 0 and min(left) >= 0 and left[0] > left[-2]


def test_time_left_is_exact_at_constant_speed(trained, short, monkeypatch):
    _, seen, end = run(*trained, monkeypatch, eps=1e-6, attacks=['apgd-ce', 'square'])
    for at, *_, left in seen[len(seen) // 4:]:
        assert left == pytest.approx(end - at, rel=0.1, abs=0.05 * end)
