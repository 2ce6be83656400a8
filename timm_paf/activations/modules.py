"""Modules that hold alpha and beta; the mathematics is in `functional`.

One module may be at many places of a network (see `sharing`). A state dict then contains its tensors once, under the
name of the first place. Both that form and the form with a copy per place can be loaded.
"""
import dataclasses
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from timm_paf.activations import functional
from timm_paf.activations.constraints import ALPHA_MAX, BETA_MAX, PSOFTPLUS_ALPHA_MIN, ParameterSpec
from timm_paf.activations.construction import construction

__all__ = [
    'ParametricActivation', 'PReLU0', 'PReLUPlus', 'PELU', 'PELUPlus', 'PSiLU', 'PSoftplus', 'ReBLU',
    'SSiLU', 'PSSiLUFixed', 'PSSiLU', 'Softplus', 'ACTIVATIONS', 'REGISTERED',
]

#: Classes of the parametric activations by registered name. Each class adds itself.
ACTIVATIONS: dict[str, type['ParametricActivation']] = {}
#: The classes of `ACTIVATIONS`, and activations without parameters that timm lacks.
REGISTERED: dict[str, type[nn.Module]] = {}

# For saving: the dictionary that the last state_dict() call wrote a module to, and its first place and key there. For
# loading: the places seen so far. Both are outside the modules, so that copies and pickles do not contain them.
_written: 'weakref.WeakKeyDictionary[ParametricActivation, tuple]' = weakref.WeakKeyDictionary()
_loading: 'weakref.WeakKeyDictionary[ParametricActivation, _LoadRecord]' = weakref.WeakKeyDictionary()


@dataclasses.dataclass
class _LoadRecord:
    """State of one load_state_dict() call for one module."""
    call: list  # of error messages, which identifies the call: it is one list per call
    first_prefix: str
    repeated: bool = False  # whether a later place has a copy in the file
    absent: list[str] = dataclasses.field(default_factory=list)  # keys of later places without a copy


class ParametricActivation(nn.Module):
    """Base class of the activations: tensors `alpha` and/or `beta` of shape (1,) or (C,), learnable or constant.

    A subclass sets `parameter_specs` and defines `forward`. `class PSiLU(ParametricActivation, name='psilu')` registers
    it under a name, for `act_layer=`, `shared`, `convert_activations`, `shape` and the names of models.

    Args:
        alpha, beta: Initial values; default as in the paper.
        learnable: True or False for all parameters, or a mapping such as `{'alpha': True, 'beta': False}`. A parameter
            that does not learn is a buffer: saved, moved and cast with the module, not seen by optimizers. Default: the
            paper's choice.
        num_parameters: 1, or the number of channels for one value per channel.
        channel_dim: Dimension of the channels in the input, for one value per channel.
        inplace: Accepted because timm passes it, and ignored: the gradient needs the input.
        device, dtype: Of the parameters. Default: those of the model under construction, else torch's default.

    Raises:
        ValueError: If an initial value is outside its range, or the activation lacks a parameter that is named.
    """

    name: str
    alpha: Tensor
    beta: Tensor
    parameter_specs: Mapping[str, ParameterSpec] = {}

    def __init_subclass__(cls, *, name: str = '', **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.name = name
            ACTIVATIONS[name] = REGISTERED[name] = cls

    def __init__(
            self,
            *,
            alpha: float | None = None,
            beta: float | None = None,
            learnable: bool | Mapping[str, bool] | None = None,
            num_parameters: int = 1,
            channel_dim: int = 1,
            inplace: bool = False,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
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
        self.places = 1  # places in the network with this module, as counted by `shared` and `convert_activations`
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.places > 1 and args and isinstance(args[0], torch.fx.Proxy):
            return self._trace(args[0].tracer, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    def _trace(self, tracer: Any, *args: Any, **kwargs: Any) -> Any:
        """Run forward under FX and record it under the place that calls.

        A tracer records every call of a module under the module's first name. For a shared activation all calls would
        be recorded at the first place, and `layer1` would seem to end before its last activation.
        """
        caller = getattr(tracer, 'current_module_qualname', None)  # only torchvision's tracer has it
        if caller is None:
            return self.forward(*args, **kwargs)
        here = [name for name, child in tracer.root.get_submodule(caller)._modules.items() if child is self]
        try:
            if len(here) == 1:  # with several, FX does not say which one is called
                tracer.current_module_qualname = f'{caller}.{here[0]}' if caller else here[0]
            return self.forward(*args, **kwargs)
        finally:
            tracer.current_module_qualname = caller

    def register_forward_hook(self, hook: Callable[..., Any], **kwargs: Any) -> RemovableHandle:
        """Register a hook as in nn.Module; refuse that of a timm feature extractor on a shared activation."""
        self._refuse_feature_hook(hook)
        return super().register_forward_hook(hook, **kwargs)

    def register_forward_pre_hook(self, hook: Callable[..., Any], **kwargs: Any) -> RemovableHandle:
        """Register a hook, with the same exception as `register_forward_hook`."""
        self._refuse_feature_hook(hook)
        return super().register_forward_pre_hook(hook, **kwargs)

    def _refuse_feature_hook(self, hook: Callable[..., Any]) -> None:
        from timm.models import FeatureHooks
        if self.places > 1 and isinstance(getattr(getattr(hook, 'func', None), '__self__', None), FeatureHooks):
            raise ValueError(
                f'feature map by a hook on {type(self).__name__}, one activation at {self.places} places: the hook '
                "would return the output at the last place. Pass feature_cls='getter', 'list' or 'fx' instead of "
                "'hook', or out_indices without this map.")

    def extra_repr(self) -> str:
        values = []
        for name in self.parameter_specs:
            tensor = getattr(self, name)
            fixed = ' (constant)' if name in self._buffers else ''
            shown = f'({tensor.numel()},)' if tensor.numel() > 1 or tensor.is_meta else f'{tensor.item():.4g}'
            values.append(f'{name}={shown}{fixed}')
        return ', '.join(values)

    def named_modules(
            self, memo: set[nn.Module] | None = None, prefix: str = '', remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield this module, and what torch's tools put into it, once per walk through a network.

        Also with `remove_duplicate=False`: `torch.func.functional_call` uses that option, treats each name of a shared
        module as another module, and puts back the wrong tensors at the end.
        """
        yield from super().named_modules(memo, prefix, remove_duplicate=True)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = '', keep_vars: bool = False) -> Any:
        """Write the tensors once per state dict, under the name of the first place."""
        known, first_prefix, first_key = _written.get(self, (None, prefix, ''))
        if isinstance(known, weakref.ref):
            known = known()
        if destination is not None and first_prefix != prefix and first_key in destination and (
                known is destination or known == id(destination)):
            return destination
        before = 0 if destination is None else len(destination)
        result = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        # a plain dict has no weak references
        known = id(result) if type(result) is dict else weakref.ref(result)
        _written[self] = (known, prefix, next(itertools.islice(result, before, None), ''))
        return result

    def _load_from_state_dict(
            self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], strict: bool,
            missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:
        record = _loading.get(self)
        if record is None or record.call is not error_msgs:
            _loading[self] = _LoadRecord(error_msgs, prefix)
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
            return
        # A later place of a module that is already loaded: the file has no copy for it, or an equal one. If only some
        # places have copies, the file is damaged or belongs to another network.
        for name, held in super().state_dict().items():
            key = prefix + name
            copy = state_dict.get(key)
            if copy is None:
                record.absent.append(key)
                if '.' in name:  # of a child, which loads next
                    state_dict[key] = held
                continue
            record.repeated = True
            if copy.shape != held.shape:
                error_msgs.append(f'{key} has shape {tuple(copy.shape)}, expected {tuple(held.shape)}.')
            elif not held.is_meta and not copy.is_meta:
                same = torch.equal(copy.to(held), held) or torch.allclose(copy.to(held), held, 0, 0, equal_nan=True)
                if not same:
                    error_msgs.append(
                        f'{key} = {copy.flatten()[:4].tolist()} contradicts {record.first_prefix}{name} = '
                        f'{held.flatten()[:4].tolist()}: both are copies of one shared activation and must be equal.')
        if record.repeated and record.absent:
            missing_keys.extend(record.absent)
            record.absent = []


class PReLU0(ParametricActivation, name='prelu0'):
    """PReLU that starts as ReLU (timm's own `prelu` starts at 0.25), `functional.prelu0`."""
    parameter_specs = {'alpha': ParameterSpec(0.)}

    def forward(self, x: Tensor) -> Tensor:
        return functional.prelu0(x, self.alpha, self.channel_dim)


class PReLUPlus(ParametricActivation, name='preluplus'):
    """PReLU+, a learned slope on positive inputs, `functional.preluplus`."""
    parameter_specs = {'alpha': ParameterSpec(1.)}

    def forward(self, x: Tensor) -> Tensor:
        return functional.preluplus(x, self.alpha, self.channel_dim)


class PELU(ParametricActivation, name='pelu'):
    """PELU, ELU with a learned depth, `functional.pelu`."""
    parameter_specs = {'alpha': ParameterSpec(1.)}

    def forward(self, x: Tensor) -> Tensor:
        return functional.pelu(x, self.alpha, self.channel_dim)


class PELUPlus(ParametricActivation, name='peluplus'):
    """PELU+, ELU with a learned slope on positive inputs, `functional.peluplus`."""
    parameter_specs = {'alpha': ParameterSpec(1.)}

    def forward(self, x: Tensor) -> Tensor:
        return functional.peluplus(x, self.alpha, self.channel_dim)


class PSiLU(ParametricActivation, name='psilu'):
    """PSiLU, SiLU with a learned sharpness, `functional.psilu`."""
    parameter_specs = {'alpha': ParameterSpec(1., greatest=ALPHA_MAX)}

    def forward(self, x: Tensor) -> Tensor:
        return functional.psilu(x, self.alpha, self.channel_dim)


class PSoftplus(ParametricActivation, name='psoftplus'):
    """PSoftplus, Softplus with a learned sharpness, `functional.psoftplus`."""
    parameter_specs = {'alpha': ParameterSpec(1., least=PSOFTPLUS_ALPHA_MIN, greatest=ALPHA_MAX)}

    def forward(self, x: Tensor) -> Tensor:
        return functional.psoftplus(x, self.alpha, self.channel_dim)


class ReBLU(ParametricActivation, name='reblu'):
    """ReBLU, ReLU with a learned bend, `functional.reblu`."""
    parameter_specs = {'alpha': ParameterSpec(0.)}

    def forward(self, x: Tensor) -> Tensor:
        return functional.reblu(x, self.alpha, self.channel_dim)


class SSiLU(ParametricActivation, name='ssilu'):
    """SSiLU, the shifted SiLU with a constant shift, `functional.ssilu`."""
    parameter_specs = {'beta': ParameterSpec(0.3, learnable=False, greatest=BETA_MAX)}

    def forward(self, x: Tensor) -> Tensor:
        return functional.ssilu(x, self.beta, self.channel_dim)


class PSSiLUFixed(ParametricActivation, name='pssilu_fixed'):
    """PSSiLU with a learned alpha and a constant shift, `functional.pssilu_fixed`."""
    parameter_specs = {
        'alpha': ParameterSpec(1., greatest=ALPHA_MAX),
        'beta': ParameterSpec(0.3, learnable=False, greatest=BETA_MAX),
    }

    def forward(self, x: Tensor) -> Tensor:
        return functional.pssilu_fixed(x, self.alpha, self.beta, self.channel_dim)


class PSSiLU(ParametricActivation, name='pssilu'):
    """PSSiLU with learned sharpness and shift, `functional.pssilu`.

    beta starts at 1e-8 as in the published models, where |beta| has the derivative 0 at 0.
    """
    parameter_specs = {
        'alpha': ParameterSpec(1., greatest=ALPHA_MAX),
        'beta': ParameterSpec(1e-8, greatest=BETA_MAX),
    }

    def forward(self, x: Tensor) -> Tensor:
        return functional.pssilu(x, self.alpha, self.beta, self.channel_dim)


class Softplus(nn.Module):
    """torch's softplus with the signature that timm expects; `inplace` is accepted and ignored."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x)


REGISTERED['softplus'] = Softplus
