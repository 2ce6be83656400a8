"""What the package computes and nobody needs, left out around its attacks.

Each function here changes one attack object of pyautoattack so that its own code runs as before on fewer model passes.
The attacks decide everything that they decided; an image's verdict can change by rounding alone, where a layer rounds
differently in a smaller batch.

- APGD pushes an image that is fooled through all remaining steps. Its verdict cannot change any more.
- FAB does the same with an image that it has fooled inside the ball.
- Square in Linf asks about an image again that is the same as the best one so far: on one channel with small squares,
  and wherever pixels are 0 or 1, many of its proposals change nothing.
"""
from typing import Any

import torch
from torch import Tensor

from timm_paf.attacks.autoattack_subject import Subject, rounding

__all__ = ['spare']


class _Fooled(Exception):
    """Every image of the batch is fooled; nothing is left to do."""


class _Batch:
    """Rows of a batch that still go through the model.

    Args:
        x: The batch, for shapes alone.
        labels: Its labels.
        dtype: The model's, which says how far rounding goes.

    Attributes:
        active: Rows that go through.
        kept: For rows that no longer do, the image that fooled the model.
    """

    def __init__(self, x: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
        self.labels = labels
        self.active = torch.arange(len(x), device=x.device)
        self.done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.kept = x.clone()
        self.rounding = rounding(dtype)

    @property
    def whole(self) -> bool:
        return len(self.active) == len(self.done)

    @property
    def left(self) -> Tensor:
        """(B,) bool: rows that no longer go through."""
        left = torch.ones_like(self.done)
        left[self.active] = False
        return left

    def note(self, logits: Tensor, images: Tensor, allowed: Tensor | None = None) -> None:
        """Mark active rows as fooled, by a margin that rounding cannot undo.

        Args:
            logits: (A, K) of the active rows.
            images: (A, …) that gave them.
            allowed: (A,) bool, images that may count; all if None.
        """
        logits, labels = logits.detach(), self.labels[self.active, None]
        true = logits.gather(1, labels).squeeze(1)
        other = logits.scatter(1, labels, -torch.inf).amax(1)
        fooled = (other - true > self.rounding * logits.abs().amax(1)) & ~self.done[self.active]
        if allowed is not None:
            fooled &= allowed
        rows = self.active[fooled]
        self.kept[rows] = images.detach()[fooled]
        self.done[rows] = True

    def shrink(self) -> None:
        """Leave fooled rows out, once they are a quarter: a kernel is prepared anew for every size of batch.

        Raises:
            _Fooled: If no row is left.
        """
        standing = self.active[~self.done[self.active]]
        if not len(standing):
            raise _Fooled
        if len(standing) <= 0.75 * len(self.active):
            self.active = standing


def _spare_apgd(attack: Any, subject: Subject) -> None:
    original = attack.attack_single_run

    def attack_single_run(x: Tensor, y: Tensor, x_init: Tensor | None = None) -> tuple:
        if attack.eps != attack.eps_orig:  # a larger ball on the way to the real one (L1): nothing counts yet
            return original(x, y, x_init=x_init)
        batch = _Batch(x, y, subject.amp_dtype or subject.dtype)
        cache: list[Tensor] = []

        def model(x_adv: Tensor) -> Tensor:
            if cache:
                batch.shrink()
            images = x_adv if batch.whole else x_adv[batch.active]
            logits = subject(images)
            batch.note(logits, images)
            if batch.whole:
                cache[:] = [logits.detach()]
                return logits
            cache[0][batch.active] = logits.detach()
            return cache[0].clone().index_put((batch.active,), logits)

        attack.model = model
        try:
            best, standing, loss, x_adv = original(x, y, x_init=x_init)
        except _Fooled:
            return x, torch.zeros_like(batch.done), x.new_zeros(len(x)), batch.kept
        finally:
            attack.model = subject
        left = batch.left
        x_adv[left] = batch.kept[left]
        return best, standing & ~left, loss, x_adv

    attack.attack_single_run = attack_single_run


def distance(difference: Tensor, norm: str) -> Tensor:
    """Norm of each row of a difference of images, norm by the package's name."""
    flat = difference.flatten(1)
    return {'Linf': lambda: flat.abs().amax(1), 'L2': lambda: flat.norm(dim=1), 'L1': lambda: flat.abs().sum(1)}[norm]()


def _spare_fab(attack: Any, subject: Subject) -> None:
    original = attack.attack_single_run
    methods = {name: getattr(attack, name) for name in (
        '_get_predicted_label', 'get_diff_logits_grads_batch', 'get_diff_logits_grads_batch_targeted')}

    def attack_single_run(x: Tensor, y: Tensor, use_rand_start: bool = False, is_targeted: bool = False) -> Tensor:
        batch: _Batch | None = None
        rows, start = torch.arange(len(x), device=x.device), x

        def labels(images: Tensor) -> Tensor:
            nonlocal batch, rows, start
            if batch is None:  # the first question is about the images themselves; FAB goes on with the right ones
                found = methods['_get_predicted_label'](images)
                rows = (found == y).nonzero().flatten()
                start = x[rows]
                batch = _Batch(start, y[rows], subject.amp_dtype or subject.dtype)
                return found
            active = images[batch.active]
            with torch.no_grad():
                logits = subject(active)
            found = batch.labels.clone()
            found[batch.active] = logits.max(1)[1]
            inside = distance(active - start[batch.active], attack.norm) <= attack.eps * (1 - 1e-6)
            batch.note(logits, active, inside)
            return found

        def differences(name: str, images: Tensor, *classes: Tensor) -> tuple[Tensor, Tensor]:
            assert batch is not None
            batch.shrink()
            if batch.whole:
                return methods[name](images, *classes)
            active = methods[name](images[batch.active], *(c[batch.active] for c in classes))
            # rows that are left out get numbers that the projection can work with
            whole = tuple(t.new_ones(len(images), *t.shape[1:]) for t in active)
            for into, t in zip(whole, active, strict=True):
                into[batch.active] = t
            return whole[0], whole[1]

        attack._get_predicted_label = labels
        for name in ('get_diff_logits_grads_batch', 'get_diff_logits_grads_batch_targeted'):
            setattr(attack, name, lambda images, *classes, name=name: differences(name, images, *classes))
        try:
            adv = original(x, y, use_rand_start=use_rand_start, is_targeted=is_targeted)
        except _Fooled:
            adv = x.clone()
        finally:
            for name, method in methods.items():
                setattr(attack, name, method)
        if batch is not None:
            left = batch.done if bool(batch.done.all()) else batch.left
            adv[rows[left]] = batch.kept[left]
        return adv

    attack.attack_single_run = attack_single_run


def _spare_square(attack: Any) -> None:
    assert attack.loss == 'margin' and not attack.targeted
    original, ask = attack.attack_single_run, attack.margin_and_loss

    def attack_single_run(x: Tensor, y: Tensor) -> tuple:
        best = margin = x.new_zeros(0)

        def margin_and_loss(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal best, margin
            if not len(margin):
                best, margin = images.clone(), ask(images, labels)[0].clone()
                return margin.clone(), margin.clone()
            standing = margin > 0
            if len(images) != len(margin):
                best, margin = best[standing], margin[standing]
            assert len(images) == len(margin)
            changed = (images != best).flatten(1).any(1)
            count, step = int(changed.sum()), max(1, len(images) // 8)
            count = min(-(-count // step) * step, len(images))  # few different sizes of batch, as in `_Batch.shrink`
            new = margin.clone()
            if count == len(images):
                new = ask(images, labels)[0]
            elif count:
                rows = changed.long().argsort(descending=True, stable=True)[:count]
                new[rows] = ask(images[rows], labels[rows])[0]
            better = ((new < margin) | (new <= 0)).float()  # the package's arithmetic: NaN times 0 stays NaN
            margin = better * new + (1 - better) * margin
            best = torch.where(better.view(-1, 1, 1, 1) > 0, images, best)
            return new, new

        attack.margin_and_loss = margin_and_loss
        try:
            return original(x, y)
        finally:
            attack.margin_and_loss = ask

    attack.attack_single_run = attack_single_run


def spare(adversary: Any, subject: Subject) -> None:
    """Leave out what is not needed in all attacks of a `pyautoattack.AutoAttack` on `subject`."""
    _spare_apgd(adversary.apgd, subject)
    _spare_apgd(adversary.apgd_targeted, subject)
    _spare_fab(adversary.fab, subject)
    if adversary.norm == 'Linf':  # elsewhere nearly every proposal changes something
        _spare_square(adversary.square)
