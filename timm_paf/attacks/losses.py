"""Losses that an attack maximises: one value per image, in float32 or float64."""
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from timm_paf._dtypes import compute_dtype
from timm_paf.attacks.checks import choose

__all__ = ['LOSSES', 'Loss', 'find_loss', 'kl_divergence']

Loss = Callable[..., Tensor]


def _wide(logits: Tensor, *, classes: int, name: str) -> Tensor:
    if logits.shape[1] < classes:
        other = 'ce or margin' if logits.shape[1] > 1 else 'ce'
        raise ValueError(
            f'loss {name} compares the {classes} largest logits; the model has {logits.shape[1]} classes. Use {other}.')
    return logits.to(compute_dtype(logits.dtype))


def _of_class(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def _largest_other(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -torch.inf).amax(1)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(_wide(logits, classes=1, name='ce'), y, reduction='none')


def kl_divergence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    r"""KL(softmax(clean_logits) || softmax(logits)) in nats, both (B, K); values (B,). Gradients flow into both.

    .. math:: \mathrm{KL}(p\,\Vert\,q) = \sum_k p_k \log\frac{p_k}{q_k}

    The gradient is 0 where the two are equal, so an attack with this loss needs a random start.
    """
    clean = clean_logits.to(compute_dtype(logits.dtype)).log_softmax(1)
    logits = _wide(logits, classes=1, name='kl').log_softmax(1)
    return functional.kl_div(logits, clean, reduction='none', log_target=True).sum(1)


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the logit of the label. Carlini and Wagner, arXiv 1608.04644."""
    logits = _wide(logits, classes=2, name='margin')
    return _largest_other(logits, y) - _of_class(logits, y)


def _dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The margin divided by the largest minus the third largest logit. Croce and Hein, arXiv 2003.01690, equation 6."""
    logits = _wide(logits, classes=3, name='dlr')
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return (_largest_other(logits, y) - _of_class(logits, y)) / (first - third + 1e-12)


def _targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Logit of the target minus that of the label, divided by the largest minus the mean of the third and fourth.

    Croce and Hein, arXiv 2003.01690, equation 7.
    """
    logits = _wide(logits, classes=4, name='dlr-targeted')
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    return (_of_class(logits, target) - _of_class(logits, y)) / (first - (third + fourth) / 2 + 1e-12)


#: Losses that an attack maximises, by name.
LOSSES: dict[str, Loss] = {
    'ce': _cross_entropy, 'kl': kl_divergence, 'margin': _margin, 'dlr': _dlr,
    'ce-targeted': lambda logits, target: -_cross_entropy(logits, target), 'dlr-targeted': _targeted_dlr}
_COMPARED_WITH = {'kl': ('clean_logits',), 'ce-targeted': ('target',), 'dlr-targeted': ('y', 'target')}


def find_loss(loss: str | Loss) -> tuple[Loss, tuple[str, ...]]:
    """The loss, and its arguments after the logits: some of 'y', 'clean_logits' and 'target'."""
    if not isinstance(loss, str):
        return loss, ('y',)
    return choose('loss', loss, LOSSES), _COMPARED_WITH.get(loss, ('y',))
