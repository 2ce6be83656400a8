import pytest
import torch
from torch import nn

from timm_paf.attacks import autoattack, autoattack_progress


def test_progress_is_reported(trained, short, monkeypatch):
    monkeypatch.setattr(autoattack_progress, '_INTERVAL', 0.)
    model, x, y = trained
    seen = []
    result = autoattack(
        model, x[:9], y[:9], eps=0.06, version='custom', attacks=['apgd-ce', 'apgd-t'], batch_size=5,
        progress=lambda *args: seen.append(args))
    correct = int(result.clean.sum())
    ends = [s[:3] for s in seen if s[1] == s[2]]
    assert ends == [(run.name, run.attacked, run.attacked) for run in result.runs] and ends[0][1] == correct
    for name in ('apgd-ce', 'apgd-t'):
        done = [s[1] for s in seen if s[0] == name]
        assert done == sorted(done) and len(done) > 5  # inside batches too
    robust = [s[3] for s in seen]
    assert robust == sorted(robust, reverse=True)
    assert robust[0] == correct and robust[-1] == int(result.robust.sum())
    left = [s[4] for s in seen]
    assert left[-1] == 0 and all(seconds >= 0 for seconds in left) and left[0] > left[-2]


class Ticking(nn.Module):
    """A model with a clock that ticks once per pass and image."""

    def __init__(self, model):
        super().__init__()
        self.model, self.time = model, 0.

    def forward(self, x):
        self.time += len(x) * (2 if x.requires_grad and torch.is_grad_enabled() else 1)
        return self.model(x)


def test_time_left_is_exact_at_constant_speed(trained, short, monkeypatch):
    model, x, y = trained
    model = Ticking(model)
    monkeypatch.setattr(autoattack_progress.time, 'monotonic', lambda: model.time)
    monkeypatch.setattr(autoattack_progress, '_INTERVAL', 0.)
    seen = []
    autoattack(
        model, x, y, eps=1e-6, version='custom', attacks=['apgd-ce', 'square'], batch_size=5,
        progress=lambda *args: seen.append((model.time, args[4])))
    end = model.time
    for at, left in seen[len(seen) // 4:]:
        assert left == pytest.approx(end - at, rel=0.1, abs=0.05 * end)
