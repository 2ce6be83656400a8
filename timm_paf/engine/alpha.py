"""Notice of a run whose alpha runs away."""
import torch
from torch import Tensor, nn

from timm_paf.activations import paf_modules, paf_parameters

__all__ = ['AlphaWatch']


class AlphaWatch:
    """Finds the first update in which an alpha changes its sign, doubles or halves.

    Nothing waits for the device before `message`. Only learnable alphas whose initial value is above 0 are watched: an
    alpha that starts at 0, as that of ReBLU, may do all of this.

    Args:
        model: The network in training, without wrappers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = {
            f'{name}.alpha' if name else 'alpha': module for name, module in paf_modules(model)
            if paf_parameters(module, 'alpha') and module.parameter_specs['alpha'].init > 0}
        self.said = False
        self.start()

    def _values(self) -> Tensor:
        return torch.cat([module.alpha.detach().flatten().float() for module in self.modules.values()])

    def start(self) -> None:
        """Compare the next update with the values of now, as after a checkpoint is loaded."""
        if self.modules:
            self._before = self._values()
            if not hasattr(self, '_found'):
                self._found = torch.full((4,), -1., device=self._before.device)

    def record(self, update: int) -> None:
        """Compare alpha after an update, number `update` from 0, with alpha before it."""
        if not self.modules or self.said:
            return
        before, after = self._before, self._values()
        ratio = after / before
        leaps = (ratio <= 0.5) | (ratio >= 2)
        place = leaps.int().argmax()
        now = torch.stack([torch.full_like(ratio[0], update), place.float(), before.take(place), after.take(place)])
        self._found = torch.where((self._found[0] < 0) & leaps.any(), now, self._found)
        self._before = after

    def message(self, clip: float | None) -> str:
        """What happened and what to do, once; empty if there is nothing to say.

        Args:
            clip: The setting `alpha_grad_clip` of the run.
        """
        if not self.modules or self.said:
            return ''
        update, place, before, after = self._found.tolist()
        if update < 0:
            return ''
        self.said = True
        counts = {name: module.alpha.numel() for name, module in self.modules.items()}
        names = [
            f'{name}[{entry}]' if count > 1 else name for name, count in counts.items() for entry in range(count)]
        advice = '--alpha-grad-clip 0.002' if clip is None else f'an --alpha-grad-clip below {clip:g}'
        return (
            f'{names[int(place)]} went from {before:.3g} to {after:.3g} in update {update + 1:.0f} and may run away; '
            f'start again with {advice}, a smaller --lr, or --warmup-epochs 1.')
