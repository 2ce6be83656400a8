"""Put a parametric activation into any network."""
import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from timm_paf.activations.channels import channels_of
from timm_paf.activations.fitting import FIT_RANGE, fit_activation
from timm_paf.activations.modules import ACTIVATIONS, ParametricActivation, PReLU0
from timm_paf.activations.sharing import activation_class
from timm_paf.activations.sites import (
    ACTIVATION_TYPES,
    GATE_TYPES,
    Site,
    attribute_sites,
    function_calls,
    module_sites,
    nearest_type,
    stages,
    unreachable_sites,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ['SHARING', 'ConversionReport', 'LeftAlone', 'Replacement', 'convert_activations']

Match = type | tuple[type, ...] | Callable[[nn.Module], bool] | None
SHARING = ('network', 'stage', 'layer', 'channel')
# floating-point types that a parameter can be trained in
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclasses.dataclass(frozen=True)
class Replacement:
    """One place that has a new activation.

    Attributes:
        name: Dotted name of the place.
        old: What was there.
        group: Name of the first place that shares the new module with this one.
        values: Initial values of the new parameters.
        deviation: Greatest |new(x) - old(x)| over |x| <= 8; None if the function was not to be preserved.
    """
    name: str
    old: str
    group: str
    values: dict[str, float]
    deviation: float | None


@dataclasses.dataclass(frozen=True)
class LeftAlone:
    """One place that looks like an activation and was not replaced.

    Attributes:
        name: Dotted name of the place, or of the module whose forward calls the function.
        old: What is there.
        reason: Why it was left.
    """
    name: str
    old: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What `convert_activations` did.

    Attributes:
        activation: Name of the new activation.
        sharing: 'network', 'stage', 'layer' or 'channel'.
        replaced: Places with a new activation.
        left: Places that keep theirs, with the reason.
    """
    activation: str
    sharing: str
    replaced: tuple[Replacement, ...]
    left: tuple[LeftAlone, ...]

    @property
    def modules(self) -> int:
        """Number of new activation modules."""
        return len({replacement.group for replacement in self.replaced})

    @property
    def max_deviation(self) -> float | None:
        """Greatest deviation of any new activation from the one it replaces; None if not asked to preserve."""
        deviations = [replacement.deviation for replacement in self.replaced if replacement.deviation is not None]
        return max(deviations, default=None)

    def table(self) -> 'Table':
        """The report for a terminal."""
        from rich.table import Table
        title = f'{len(self.replaced)} places now {self.activation}, {self.modules} modules ({self.sharing})'
        table = Table('place', 'was', 'now', 'deviation', title=title)
        for item in self.replaced:
            values = ', '.join(f'{name}={value:.4g}' for name, value in item.values.items())
            deviation = '' if item.deviation is None else f'{item.deviation:.2g}'
            table.add_row(item.name, item.old, f'{self.activation}({values})', deviation)
        for left in self.left:
            table.add_row(left.name, left.old, f'left: {left.reason}', '')
        return table

    def __str__(self) -> str:
        from timm_paf.activations.text import table_text
        return table_text(self.table())


class _FunctionSite(nn.Module):
    """An activation at a place that was called as a function, with arguments that torch's functions take."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        if not isinstance(inplace, bool):  # F.leaky_relu(x, 0.2): another second argument
            raise TypeError('the activation was called with an argument that a parametric activation does not take.')
        return self.act(x)


def convert_activations(
        model: nn.Module,
        name: str,
        *,
        sharing: str = 'network',
        match: Match = None,
        preserve: bool = True,
        example_input: Tensor | None = None,
        **settings: Any,
) -> ConversionReport:
    """Replace the activations of a network, in place.

    Replaced are modules, wherever they stand (inside timm's norm-act layers as well), and functions kept as attributes
    (`self.activation = F.relu`, also in a `functools.partial`). Calls written into a method cannot be replaced from
    outside; the report names the modules that make them. Gates (sigmoid, tanh, softmax) are left unless `match` asks
    for them. Convert before the optimizer is made, which would not know the new parameters, and before wrappers such as
    DistributedDataParallel. A compiled model is compiled anew at its next call.

    Args:
        model: Any network; changed in place.
        name: Registered name of a parametric activation.
        sharing: One module for the whole 'network'; one for each 'stage' (the level of the module tree that divides the
            activations, see `sites.stages`); one for each place ('layer'); or one value for each channel of each place
            ('channel'), which needs an `example_input` or a timm model that says its input size.
        match: What to replace: a type or tuple of types, or a predicate on modules, which also takes activations that
            are written by hand. None replaces what usually stands between layers: ReLU, LeakyReLU, ELU, GELU, SiLU,
            Mish, Softplus and their relatives. Subclasses count as what they derive from; ReLU6 is no Hardtanh.
        preserve: Start where the new function equals the old one, or comes closest to it; places that share a module
            are fitted to the commonest activation among them. False starts at the paper's initial values.
        example_input: Input for one forward pass, for 'channel' only.
        **settings: Arguments of the activation, e.g. `learnable=False`; initial values here go before `preserve`.

    Returns:
        What was replaced and what was left, and why.

    Raises:
        ValueError: If the name or the sharing is unknown, the activation has no parameters, nothing matches, an
            activation has hooks, which would be lost, or the channels of a place cannot be found. The model is
            unchanged then.
        TypeError: If the model is no nn.Module, a TorchScript module, whose code is fixed, statically quantised, or
            already wrapped for distributed training.

    Example:
        >>> model = timm.create_model('swin_tiny_patch4_window7_224')
        >>> print(timm_paf.convert_activations(model, 'pssilu', sharing='stage'))
    """
    cls = _checked(model, name, sharing)
    name = name.lower()
    wanted = _predicate(match)
    if wanted(model):
        raise ValueError(
            f'{_describe(model)} is itself the activation, and a module cannot be replaced in place; build '
            f'{cls.__name__} instead, or pass the network that holds it.')
    places = [*module_sites(model, wanted), *(site for site in attribute_sites(model) if wanted(site.module))]
    left = _left_alone(model, places)
    if not places:
        seen = sorted({item.old for item in left}) or ['none']
        raise ValueError(
            f'{type(model).__name__} has nothing to convert: no activation matches {match or "the usual types"}. '
            f'Activations found: {", ".join(seen)}. Pass match=... for others.')
    hooked = next((site for site in places if _hooks(site.module)), None)
    if hooked is not None:
        raise ValueError(
            f'{hooked.name} = {_describe(hooked.module)} has hooks, which would be lost with it; convert the model '
            'before hooks are registered, or remove them.')
    channels = channels_of(model, places, example_input) if sharing == 'channel' else {}
    placement = _placement(model)

    planned: list[tuple[Site, ParametricActivation]] = []  # nothing is put before all is known to fit
    replaced: dict[str, Replacement] = {}
    for members in _groups(places, sharing):
        first = members[0]
        fitted: dict[str, float] = {}
        if preserve:
            common, _ = Counter(_describe(site.module) for site in members).most_common(1)[0]
            typical = next(site for site in members if _describe(site.module) == common)
            fitted = fit_activation(name, _functions(typical)[0]).values
        arguments: dict[str, Any] = {**placement, **channels.get(first.name, {}), **fitted, **settings}
        new = cls(**arguments).train(model.training)
        new.places = len(members)
        values = {label: float(arguments.get(label, spec.init)) for label, spec in cls.parameter_specs.items()}
        if preserve and sharing == 'channel' and name == 'prelu0' and 'alpha' not in settings:
            _copy_slopes(first.module, new)
        for site in members:
            deviation = _deviation(new, values, site) if preserve else None
            replaced[site.name] = Replacement(site.name, _describe(site.module), first.name, values, deviation)
            planned.append((site, new))
    for site, new in planned:
        _put(site, new)
    _forgo_nested_tensors(model)
    return ConversionReport(name, sharing, tuple(replaced[site.name] for site in places), left)


def _groups(places: list[Site], sharing: str) -> list[list[Site]]:
    """The places that will hold one module, group by group."""
    stage_of = stages([site.name for site in places]) if sharing == 'stage' else {}
    groups: dict[Any, list[Site]] = {}
    for site in places:  # an aliased module stays one module, whatever the sharing
        key = {'network': '', 'stage': stage_of.get(site.name)}.get(sharing, id(site.module))
        groups.setdefault(key, []).append(site)
    return list(groups.values())


def _checked(model: nn.Module, name: str, sharing: str) -> type[ParametricActivation]:
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError('model is a TorchScript module, whose code is fixed; convert the nn.Module, then script it.')
    if not isinstance(model, nn.Module):
        raise TypeError(f'model is of type {type(model).__name__}; expected an nn.Module.')
    for label, module in model.named_modules():
        for prefix, reason in _UNCHANGEABLE.items():
            if any(f'{base.__module__}.{base.__name__}'.startswith(prefix) for base in type(module).__mro__):
                raise TypeError(f'{label or "model"} is of type {type(module).__name__}: {reason}.')
    if sharing not in SHARING:
        raise ValueError(f'sharing = {sharing!r}: expected one of {", ".join(SHARING)}.')
    cls = activation_class(name)
    if not issubclass(cls, ParametricActivation):
        raise ValueError(f'{name!r} has no parameters; expected one of {", ".join(ACTIVATIONS)}.')
    return cls


_UNCHANGEABLE = {  # by name, since importing them takes long
    'torch.nn.parallel.distributed.DistributedDataParallel':
        'it would not average the gradients of new parameters; convert the model before it is wrapped',
    'torch.distributed.fsdp.': 'it would not know the new parameters; convert the model before it is wrapped',
    'torch.ao.nn.quantized.modules.': 'activations on quantised tensors have no parameters; convert before quantising',
    'torch.ao.nn.intrinsic.quantized.modules.':
        'activations on quantised tensors have no parameters; convert before quantising',
}


def _hooks(module: nn.Module) -> bool:
    return any((
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _placement(model: nn.Module) -> dict[str, Any]:
    """Device and dtype of the first parameter that could be one of an activation."""
    parameters = list(model.parameters())
    reference = next((p for p in parameters if p.dtype in _DTYPES), None)
    if reference is None:
        return {'device': parameters[0].device if parameters else torch.get_default_device(), 'dtype': None}
    return {'device': reference.device, 'dtype': reference.dtype}


def _predicate(match: Match) -> Callable[[nn.Module], bool]:
    if match is None:
        return lambda module: nearest_type(module) in ACTIVATION_TYPES
    if isinstance(match, type) or (isinstance(match, tuple) and all(isinstance(item, type) for item in match)):
        types = match if isinstance(match, tuple) else (match,)
        return lambda module: nearest_type(module, types) in types
    if not callable(match):
        raise TypeError(f'match = {match!r}: expected a type, a tuple of types, or a predicate on modules.')
    return match


def _left_alone(model: nn.Module, places: list[Site]) -> tuple[LeftAlone, ...]:
    taken = {site.name for site in places}
    found = [*module_sites(model, lambda module: nearest_type(module) is not None), *attribute_sites(model)]
    left = [
        LeftAlone(
            site.name, _describe(site.module), 'a gate' if nearest_type(site.module) in GATE_TYPES else 'not matched')
        for site in found if site.name not in taken]
    left += [LeftAlone(site.name, _describe(site.module), reason) for site, reason in unreachable_sites(model)]
    # a module is named where its class was first seen: twelve equal blocks are one fact
    matched = {type(site.module) for site in places}
    seen: dict[type, list[LeftAlone]] = {}
    for prefix, module in model.named_modules():
        if type(module) not in seen and type(module) not in matched:
            seen[type(module)] = [
                LeftAlone(
                    prefix or type(model).__name__, ', '.join(calls.functions),
                    f'{"a gate, " if calls.gates else ""}called in the code of {", ".join(calls.methods)}')
                for calls in function_calls(module)]
    return (*left, *(item for items in seen.values() for item in items))


def _put(site: Site, module: nn.Module) -> None:
    if site.attribute in site.parent._modules:
        site.parent._modules[site.attribute] = module
    else:
        setattr(site.parent, site.attribute, _FunctionSite(module))
    if hasattr(site.parent, 'activation_relu_or_gelu'):
        # torch's TransformerEncoderLayer would otherwise run its fused ReLU or GELU in eval mode
        site.parent.activation_relu_or_gelu = 0


def _forgo_nested_tensors(model: nn.Module) -> None:
    """Let torch's encoders keep padded tensors: nested ones are for its fused layers, which only know ReLU and GELU."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
                getattr(layer, 'activation_relu_or_gelu', 1) == 0 for layer in module.layers):
            module.enable_nested_tensor = module.use_nested_tensor = False


def _describe(module: nn.Module) -> str:
    return repr(module).replace(', inplace=True', '').replace('inplace=True', '')


def _functions(site: Site) -> list[Callable[[Tensor], Tensor]]:
    """An activation as functions of float64 tensors on the CPU: the typical one first, then the extremes it holds."""
    def leaky(slope: float) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.where(x > 0, x, slope * x)

    module = site.module
    weight = getattr(module, 'weight', None)
    if isinstance(module, nn.RReLU):
        return [leaky(slope) for slope in ((module.lower + module.upper) / 2, module.lower, module.upper)]
    if type(module).__name__ == 'PReLU' and isinstance(weight, Tensor):  # torch's or timm's
        if weight.is_meta:
            return [leaky(0.25)]
        slopes = weight.detach().double()
        return [leaky(float(slope)) for slope in (slopes.mean(), slopes.min(), slopes.max())]

    def call(x: Tensor) -> Tensor:
        try:
            function = module
            if next(itertools.chain(module.parameters(), module.buffers()), None) is not None:
                function = copy.deepcopy(module).to('cpu', torch.float64)
            y = function(x.clone())  # the module may work in place
            fits = isinstance(y, Tensor) and y.shape == x.shape and not y.is_meta
        except Exception as error:  # whatever a predicate matched may fail in any way
            raise ValueError(_UNFIT.format(site.name, _describe(module), error)) from error
        if not fits:
            raise ValueError(_UNFIT.format(site.name, _describe(module), 'its output is not of that kind'))
        return y.detach().double()

    return [call]


_UNFIT = (
    '{} = {} cannot be imitated: it is not a function of single float64 numbers on the CPU ({}); leave it out with '
    'match=..., or pass preserve=False.')


def _copy_slopes(old: nn.Module, new: ParametricActivation) -> None:
    weight = getattr(old, 'weight', None)
    if isinstance(weight, Tensor) and weight.shape == new.alpha.shape:
        with torch.no_grad():
            new.alpha.copy_(weight)


def _deviation(new: ParametricActivation, values: dict[str, Any], site: Site) -> float:
    """Greatest |new - old| over |x| <= FIT_RANGE, and over the channels where they differ."""
    x = torch.linspace(-FIT_RANGE, FIT_RANGE, 3201, dtype=torch.float64, device='cpu')
    weight, alpha = getattr(site.module, 'weight', None), getattr(new, 'alpha', None)
    if isinstance(new, PReLU0) and isinstance(weight, Tensor) and not weight.is_meta and torch.equal(weight, alpha):
        return 0.  # slope by slope, see _copy_slopes
    with torch.no_grad():
        y = type(new)(**values, device='cpu', dtype=torch.float64)(x)
        return max(float((y - function(x)).abs().max()) for function in _functions(site))
