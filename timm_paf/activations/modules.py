"""Modules that hold alpha and beta; the mathematics is in `functional`.

A module may stand at many places of a network (see `sharing`). Its tensors then appear once in a state dict, under the
first name the module is reached by, and both that form and the form with a copy per place can be loaded.
"""
import math
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from timm_paf.activations.construction import construction
from timm_paf.activations.functional import (
    ALPHA_MAX,
    BETA_MAX,
    PSOFTPLUS_ALPHA_MIN,
    pelu,
    peluplus,
    prelu0,
    preluplus,
    psilu,
    psoftplus,
    pssilu,
    pssilu_fixed,
    reblu,
    ssilu,
)

__all__ = [
    'ParametricActivation', 'ParameterSpec', 'PReLU0', 'PReLUPlus', 'PELU', 'PELUPlus', 'PSiLU', 'PSoftplus', 'ReBLU',
    'SSiLU', 'PSSiLUFixed', 'PSSiLU', 'Softplus', 'ACTIVATIONS', 'REGISTERED',
]

# torch.fx then records a call of the function instead of running its checks on symbols
for _name in (
    'prelu0', 'preluplus', 'pelu', 'peluplus', 'psilu', 'psoftplus', 'reblu', 'ssilu', 'pssilu_fixed', 'pssilu',
):
    torch.fx.wrap(_name)


class ParameterSpec(NamedTuple):
    """Initial value of a parameter, whether it learns by default, and the range of its absolute value."""
    init: float
    learnable: bool = True
    least: float = 0.
    greatest: float = math.inf

    def check(self, value: float, label: str) -> None:
        """Raise ValueError if a value is not a finite number inside the range."""
        if not math.isfinite(value):
            raise ValueError(f'{label} = {value}: expected a finite number.')
        if not self.least <= abs(value) <= self.greatest:
            raise ValueError(f'{label} = {value}: expected {self.least:g} <= |{label}| <= {self.greatest:g}.')


# The destination of the state_dict() call, and the key prefix, under which a module was last written; and for loading,
# what has been seen of a module's places so far. Kept outside the modules so that copies and pickles do not carry them.
_written: 'weakref.WeakKeyDictionary[ParametricActivation, tuple]' = weakref.WeakKeyDictionary()
_loading: 'weakref.WeakKeyDictionary[ParametricActivation, _LoadRecord]' = weakref.WeakKeyDictionary()


def _mark(destination: dict) -> Any:
    """What a dictionary is known by later, without keeping it alive; a plain one cannot be referred to weakly."""
    return id(destination) if type(destination) is dict else weakref.ref(destination)


def _is_marked(mark: Any, destination: dict) -> bool:
    return mark() is destination if isinstance(mark, weakref.ref) else mark == id(destination)


class _LoadRecord:
    """One load_state_dict() call as one module sees it."""

    def __init__(self, call: list, prefix: str) -> None:
        self.call = call  # the call's list of error messages stands for the call: one list per call, shared by all
        self.first_prefix = prefix
        self.repeated = False  # a place after the first brought a copy
        self.absent: list[str] = []  # keys of later places that brought none


class ParametricActivation(nn.Module):
    """Base of the activations: tensors `alpha` and/or `beta` of shape (1,) or (C,), learnable or constant.

    Args:
        alpha: Initial value; default as in the paper.
        beta: Initial value; default as in the paper.
        learnable: True or False for all parameters, or a mapping such as `{'alpha': True, 'beta': False}`. A parameter
            that does not learn is a buffer: saved, moved and cast with the module, not seen by optimizers. None takes
            the paper's choice.
        num_parameters: 1, or the number of channels for one value per channel.
        channel_dim: Dimension of the input that the channels run along, when there is one value per channel.
        inplace: Accepted because timm passes it; the input is needed for the gradient and never overwritten.
        device: Device of the parameters; by default that of the model under construction, else torch's default.
        dtype: Dtype of the parameters; likewise.

    Raises:
        ValueError: If an initial value lies outside its range, or a parameter is named that the activation lacks.
    """

    parameter_specs: Mapping[str, ParameterSpec] = {}

    def __init__(
            self,
            *,
            alpha: float | None = None,
            beta: float | None = None,
            learnable: bool | Mapping[str, bool] | None = None,
            num_parameters: int = 1,
            channel_dim: int = 1,
            inplace: bool = False,
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        if device is None or dtype is None:
            around = construction(skip=self)
            device = around.device if device is None else device
            dtype = around.dtype if dtype is None else dtype
        if not isinstance(num_parameters, int) or num_parameters < 1:
            raise ValueError(f'num_parameters = {num_parameters!r}: expected 1, or the number of channels.')
        self.num_parameters = num_parameters
        self.channel_dim = channel_dim
        self.places = 1  # of a network that hold this module; `shared` and `convert_activations` count
        given = {name: value for name, value in (('alpha', alpha), ('beta', beta)) if value is not None}
        asked = learnable if isinstance(learnable, Mapping) else {}
        for name in (*given, *asked):
            if name not in self.parameter_specs:
                known = ' and '.join(self.parameter_specs)
                raise ValueError(f'{type(self).__name__} has no parameter {name!r}; it has {known}.')
        for name, spec in self.parameter_specs.items():
            value = float(given.get(name, spec.init))
            spec.check(value, name)
            tensor = torch.full((num_parameters,), value, device=device, dtype=dtype)
            learns = asked.get(name, spec.learnable) if not isinstance(learnable, bool) else learnable
            if learns:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def __call__(self, *args, **kwargs):
        if self.places > 1 and args and isinstance(args[0], torch.fx.Proxy):
            return self._trace(args[0].tracer, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    def _trace(self, tracer, *args, **kwargs):
        """Forward under FX, recorded where it is called.

        A tracer names what a module computes by the module's first name, so that of a shared one everything would
        belong to the first place, and `layer1` would end before its last activation.
        """
        caller = getattr(tracer, 'current_module_qualname', None)  # of torchvision's tracer, which features come from
        if caller is None:
            return self.forward(*args, **kwargs)
        here = [name for name, child in tracer.root.get_submodule(caller)._modules.items() if child is self]
        try:
            if len(here) == 1:  # of several, FX does not say which is called
                tracer.current_module_qualname = f'{caller}.{here[0]}' if caller else here[0]
            return self.forward(*args, **kwargs)
        finally:
            tracer.current_module_qualname = caller

    def register_forward_hook(self, hook, **kwargs):
        """As nn.Module; refuses the hook of a timm feature extractor if the activation stands at several places."""
        self._refuse_feature_hook(hook)
        return super().register_forward_hook(hook, **kwargs)

    def register_forward_pre_hook(self, hook, **kwargs):
        """As `register_forward_hook`."""
        self._refuse_feature_hook(hook)
        return super().register_forward_pre_hook(hook, **kwargs)

    def _refuse_feature_hook(self, hook) -> None:
        from timm.models import FeatureHooks
        if self.places > 1 and isinstance(getattr(getattr(hook, 'func', None), '__self__', None), FeatureHooks):
            raise ValueError(
                f'a feature map is to be read by a hook on {type(self).__name__}, one activation at {self.places} '
                "places: the hook would see the last of them. Pass feature_cls='getter', 'list' or 'fx' in place of "
                "'hook', or out_indices without this map.")

    def extra_repr(self) -> str:
        values = []
        for name in self.parameter_specs:
            tensor = getattr(self, name)
            fixed = '' if isinstance(tensor, nn.Parameter) else ' (constant)'
            shown = f'({tensor.numel()},)' if tensor.numel() > 1 or tensor.is_meta else f'{tensor.item():.4g}'
            values.append(f'{name}={shown}{fixed}')
        return ', '.join(values)

    def named_modules(self, memo: set | None = None, prefix: str = '', remove_duplicate: bool = True):
        """This module, once in a walk through a network, also when duplicates are asked for.

        `torch.func.functional_call` asks for them, takes each name of a shared module for a place of its own, and puts
        the wrong tensors back when it is done.
        """
        memo = set() if memo is None else memo
        if self not in memo:
            memo.add(self)
            yield prefix, self

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        mark, first_prefix = _written.get(self, (None, prefix))
        first_key = first_prefix + next(iter(self.parameter_specs))
        if first_prefix != prefix and first_key in destination and _is_marked(mark, destination):
            return  # already in this state dict, under the name of its first place
        _written[self] = (_mark(destination), prefix)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
            self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs) -> None:
        record = _loading.get(self)
        if record is None or record.call is not error_msgs:
            _loading[self] = _LoadRecord(error_msgs, prefix)
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
            return
        # A later place of a module that the first place has loaded: either nothing of it is in the file, or the same
        # values are. Some places with copies and some without means that the file is damaged or of another network.
        for name in self.parameter_specs:
            key = prefix + name
            copy, held = state_dict.get(key), getattr(self, name)
            if copy is None:
                record.absent.append(key)
                continue
            record.repeated = True
            if copy.shape != held.shape:
                error_msgs.append(f'{key} has shape {tuple(copy.shape)}, expected {tuple(held.shape)}.')
            elif not held.is_meta and not copy.is_meta:
                same = torch.equal(copy.to(held), held) or torch.allclose(copy.to(held), held, 0, 0, equal_nan=True)
                if not same:
                    error_msgs.append(
                        f'{key} = {copy.flatten()[:4].tolist()} contradicts {record.first_prefix}{name} = '
                        f'{held.flatten()[:4].tolist()}: both are copies of one shared activation.')
        if record.repeated and record.absent:
            missing_keys.extend(record.absent)
            record.absent = []


class PReLU0(ParametricActivation):
    """PReLU that starts as ReLU, `functional.prelu0` (timm's own `prelu` starts at 0.25)."""
    parameter_specs = {'alpha': ParameterSpec(0.)}

    def forward(self, x: Tensor) -> Tensor:
        return prelu0(x, self.alpha, self.channel_dim)


class PReLUPlus(ParametricActivation):
    """PReLU+, a learned slope on positive inputs, `functional.preluplus`."""
    parameter_specs = {'alpha': ParameterSpec(1.)}

    def forward(self, x: Tensor) -> Tensor:
        return preluplus(x, self.alpha, self.channel_dim)


class PELU(ParametricActivation):
    """PELU, ELU with a learned depth, `functional.pelu`."""
    parameter_specs = {'alpha': ParameterSpec(1.)}

    def forward(self, x: Tensor) -> Tensor:
        return pelu(x, self.alpha, self.channel_dim)


class PELUPlus(ParametricActivation):
    """PELU+, ELU with a learned slope on positive inputs, `functional.peluplus`."""
    parameter_specs = {'alpha': ParameterSpec(1.)}

    def forward(self, x: Tensor) -> Tensor:
        return peluplus(x, self.alpha, self.channel_dim)


class PSiLU(ParametricActivation):
    """PSiLU, SiLU with a learned sharpness, `functional.psilu`."""
    parameter_specs = {'alpha': ParameterSpec(1., greatest=ALPHA_MAX)}

    def forward(self, x: Tensor) -> Tensor:
        return psilu(x, self.alpha, self.channel_dim)


class PSoftplus(ParametricActivation):
    """PSoftplus, Softplus with a learned sharpness, `functional.psoftplus`."""
    parameter_specs = {'alpha': ParameterSpec(1., least=PSOFTPLUS_ALPHA_MIN, greatest=ALPHA_MAX)}

    def forward(self, x: Tensor) -> Tensor:
        return psoftplus(x, self.alpha, self.channel_dim)


class ReBLU(ParametricActivation):
    """ReBLU, ReLU with a learned bend, `functional.reblu`."""
    parameter_specs = {'alpha': ParameterSpec(0.)}

    def forward(self, x: Tensor) -> Tensor:
        return reblu(x, self.alpha, self.channel_dim)


class SSiLU(ParametricActivation):
    """SSiLU, the shifted SiLU; its shift is constant, `functional.ssilu`."""
    parameter_specs = {'beta': ParameterSpec(0.3, learnable=False, greatest=BETA_MAX)}

    def forward(self, x: Tensor) -> Tensor:
        return ssilu(x, self.beta, self.channel_dim)


class PSSiLUFixed(ParametricActivation):
    """PSSiLU with a learned alpha and a constant shift, `functional.pssilu_fixed`."""
    parameter_specs = {
        'alpha': ParameterSpec(1., greatest=math.sqrt(ALPHA_MAX)),
        'beta': ParameterSpec(0.3, learnable=False, greatest=BETA_MAX),
    }

    def forward(self, x: Tensor) -> Tensor:
        return pssilu_fixed(x, self.alpha, self.beta, self.channel_dim)


class PSSiLU(ParametricActivation):
    """PSSiLU with learned sharpness and shift, `functional.pssilu`.

    beta starts at 1e-8 as in the published models: the absolute value there has a derivative of 0 at 0.
    """
    parameter_specs = {
        'alpha': ParameterSpec(1., greatest=ALPHA_MAX),
        'beta': ParameterSpec(1e-8, greatest=BETA_MAX),
    }

    def forward(self, x: Tensor) -> Tensor:
        return pssilu(x, self.alpha, self.beta, self.channel_dim)


ACTIVATIONS: Mapping[str, type[ParametricActivation]] = {
    'prelu0': PReLU0,
    'preluplus': PReLUPlus,
    'pelu': PELU,
    'peluplus': PELUPlus,
    'psilu': PSiLU,
    'psoftplus': PSoftplus,
    'reblu': ReBLU,
    'ssilu': SSiLU,
    'pssilu_fixed': PSSiLUFixed,
    'pssilu': PSSiLU,
}


class Softplus(nn.Module):
    """torch's softplus under the signature that timm calls activations with (nn.Softplus takes no `inplace`).

    Args:
        inplace: Accepted and without effect.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x)


# by the names that timm finds them under
REGISTERED: dict[str, type[nn.Module]] = {**ACTIVATIONS, 'softplus': Softplus}
