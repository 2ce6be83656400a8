"""Conversion of any network to a parametric activation."""
import copy
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

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

__all__ = [
    'SHARING', 'ConversionReport', 'LeftAlone', 'Replacement', 'activation_places', 'convert_activations',
    'put_activations',
]

Function = Callable[[Tensor], Tensor]
Match = type | tuple[type, ...] | Callable[[nn.Module], bool] | None
#: What shares one activation: the whole network, a stage, a layer, a channel.
SHARING = ('network', 'stage', 'layer', 'channel')
_TRAINABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_QUANTISED = 'activations on quantised tensors have no parameters; convert the model before it is quantised'
_UNCHANGEABLE = {  # by the name of their file, because these modules take long to import
    'torch.nn.parallel.distributed.':
        'it would not average the gradients of new parameters; convert the model before it is wrapped',
    'torch.distributed.fsdp.': 'it would not know the new parameters; convert the model before it is wrapped',
    'torch.ao.nn.quantized.modules.': _QUANTISED,
    'torch.ao.nn.intrinsic.quantized.modules.': _QUANTISED,
}


class Replacement(NamedTuple):
    """One place with a new activation."""
    name: str  # dotted name of the place
    old: str  # the activation before
    group: str  # name of the first place that shares the new module
    values: dict[str, float]  # initial values of the new parameters
    deviation: float | None  # largest |new(x) - old(x)| over |x| <= 8; None with `preserve=False`


class LeftAlone(NamedTuple):
    """One place that looks like an activation and was not replaced."""
    name: str  # dotted name of the place, or of the module whose code calls the function
    old: str  # the activation there
    reason: str  # why it was not replaced


class ConversionReport(NamedTuple):
    """Result of `convert_activations`."""
    activation: str  # name of the new activation
    sharing: str  # 'network', 'stage', 'layer' or 'channel'
    replaced: tuple[Replacement, ...]  # places with a new activation
    left: tuple[LeftAlone, ...]  # places that keep theirs, with the reason

    @property
    def modules(self) -> int:
        """Number of new activation modules."""
        return len({replacement.group for replacement in self.replaced})

    @property
    def max_deviation(self) -> float | None:
        """Largest deviation of a new activation from the one it replaces; None with `preserve=False`."""
        return max((item.deviation for item in self.replaced if item.deviation is not None), default=None)

    def table(self) -> 'Table':
        """Format the report as a table for a terminal."""
        from rich.table import Table
        title = f'{len(self.replaced)} places now {self.activation}, modules: {self.modules} ({self.sharing})'
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
    """An activation module in place of a function, which accepts the arguments of torch's functions."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        if not isinstance(inplace, bool):  # F.leaky_relu(x, 0.2): another second argument
            raise TypeError(
                f'the converted network calls its activation with {inplace!r}; a parametric activation takes x alone. '
                f'Leave this place out with match=...')
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

    It replaces modules, also inside timm's norm-act layers, and functions kept as attributes (`self.activation =
    F.relu`, also in a `functools.partial`). It cannot replace calls inside the code of a method; the report names the
    modules that make them. Gates (sigmoid, tanh, softmax) stay unless `match` selects them. Convert before you create
    an optimizer, which would not know the new parameters, and before wrappers such as DistributedDataParallel. A
    compiled model is compiled again at its next call.

    Args:
        model: Any network; changed in place.
        name: Registered name of a parametric activation.
        sharing: One module for the whole 'network', per 'stage' (the level of the module tree that divides the
            activations, see `sites.stages`) or per place ('layer'); or one value per channel of each place ('channel'),
            which needs `example_input` or a timm model that states its input size.
        match: What to replace: a type, a tuple of types, or a predicate on modules, which can also select activations
            written by hand. None selects the usual activations between layers: ReLU, LeakyReLU, ELU, GELU, SiLU, Mish,
            Softplus and their relatives. A subclass counts as its base class; ReLU6 does not count as Hardtanh.
        preserve: Start with parameters that make the new function equal to the old one, or as close as possible. Places
            that share a module are fitted to the most common activation among them. False starts at the paper's
            initial values.
        example_input: Input for one forward pass, only for 'channel'.
        **settings: Arguments of the activation, e.g. `learnable=False`; initial values here override `preserve`.

    Returns:
        The places that were replaced, and those that were not, with the reason.

    Raises:
        ValueError: If the name or the sharing is unknown, the activation has no parameters, nothing matches, an
            activation has hooks (which would be lost), or the channels of a place are unknown. The model is then
            unchanged.
        TypeError: If the model is not an nn.Module, or it is a TorchScript module, statically quantised, or wrapped for
            distributed training.

    Example:
        >>> model = timm.create_model('swin_tiny_patch4_window7_224')
        >>> print(timm_paf.convert_activations(model, 'pssilu', sharing='stage'))
    """
    cls = _checked(model, name, sharing)
    name = name.lower()
    places = _places(model, match, cls)
    left = _left_alone(model, places)
    if not places:
        seen = sorted({item.old for item in left}) or ['none']
        raise ValueError(
            f'{type(model).__name__} has nothing to convert: no activation matches {match or "the usual types"}. '
            f'Activations found: {", ".join(seen)}. Pass match=... to select others.')
    channels = channels_of(model, places, example_input) if sharing == 'channel' else {}
    placement = _placement(model)

    planned: dict[Site, tuple[ParametricActivation, Replacement]] = {}  # the model changes only after all fits
    for members in _groups(places, sharing):
        first = members[0]
        fitted: dict[str, float] = {}
        if preserve:
            common, _ = Counter(_describe(site.module) for site in members).most_common(1)[0]
            typical = next(site for site in members if _describe(site.module) == common)
            fitted = fit_activation(name, _functions(typical)[0], typical.module).values
        arguments: dict[str, Any] = {**placement, **channels.get(first.name, {}), **fitted, **settings}
        new = cls(**arguments).train(model.training)
        new.places = len(members)
        values = {label: float(arguments.get(label, spec.init)) for label, spec in cls.parameter_specs.items()}
        slopes = getattr(first.module, 'weight', None)
        if (preserve and sharing == 'channel' and name == 'prelu0' and 'alpha' not in settings
                and isinstance(slopes, Tensor) and slopes.shape == new.alpha.shape):
            with torch.no_grad():
                new.alpha.copy_(slopes)
        for site in members:
            deviation = _deviation(new, values, site) if preserve else None
            planned[site] = new, Replacement(site.name, _describe(site.module), first.name, values, deviation)
    put_activations(model, {site.name: new for site, (new, _) in planned.items()})
    return ConversionReport(name, sharing, tuple(planned[site][1] for site in places), left)


def put_activations(model: nn.Module, modules: Mapping[str, ParametricActivation]) -> None:
    """Put activations at the places with these names, in place of modules or of functions kept as attributes.

    Raises:
        AttributeError: If the model has no place of such a name.
    """
    for name, module in modules.items():
        parent_name, _, attribute = name.rpartition('.')
        try:
            parent = model.get_submodule(parent_name)
            getattr(parent, attribute)
        except AttributeError:
            raise AttributeError(f'{type(model).__name__} has no place {name!r}.') from None
        if attribute in parent._modules:
            parent._modules[attribute] = module
        else:
            setattr(parent, attribute, _FunctionSite(module))
        if hasattr(parent, 'activation_relu_or_gelu'):
            # torch's TransformerEncoderLayer would otherwise run its fused ReLU or GELU in eval mode
            setattr(parent, 'activation_relu_or_gelu', 0)  # noqa: B010
    for layers in model.modules():  # nested tensors need torch's fused layers, which know only ReLU and GELU
        if isinstance(layers, nn.TransformerEncoder) and any(
                getattr(layer, 'activation_relu_or_gelu', 1) == 0 for layer in layers.layers):
            layers.enable_nested_tensor = layers.use_nested_tensor = False


def activation_places(model: nn.Module) -> dict[ParametricActivation, list[str]]:
    """The names of the places of each parametric activation, for `put_activations`."""
    places: dict[ParametricActivation, list[str]] = {}
    for prefix, parent in model.named_modules():
        for attribute, child in parent._modules.items():
            if isinstance(child, ParametricActivation):
                name = f'{prefix}.{attribute}'.lstrip('.')
                places.setdefault(child, []).append(prefix if isinstance(parent, _FunctionSite) else name)
    return places


def _checked(model: nn.Module, name: str, sharing: str) -> type[ParametricActivation]:
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError('model is a TorchScript module, whose code is fixed; convert the nn.Module, then script it.')
    if not isinstance(model, nn.Module):
        raise TypeError(f'model is of type {type(model).__name__}; expected an nn.Module.')
    for label, module in model.named_modules():
        for prefix, reason in _UNCHANGEABLE.items():
            if any(f'{base.__module__}.'.startswith(prefix) for base in type(module).__mro__):
                raise TypeError(f'{label or "model"} is of type {type(module).__name__}: {reason}.')
    if sharing not in SHARING:
        raise ValueError(f'sharing = {sharing!r}: expected one of {", ".join(SHARING)}.')
    cls = activation_class(name)
    if not issubclass(cls, ParametricActivation):
        raise ValueError(f'{name!r} has no parameters; expected one of {", ".join(ACTIVATIONS)}.')
    return cls


def _places(model: nn.Module, match: Match, cls: type[nn.Module]) -> list[Site]:
    """The places to replace."""
    wanted = _predicate(match)
    if wanted(model):
        raise ValueError(
            f'{_describe(model)} is itself the activation, and a module cannot be replaced in place; build '
            f'{cls.__name__} instead, or pass the network that contains it.')
    places = [*module_sites(model, wanted), *(site for site in attribute_sites(model) if wanted(site.module))]
    for site in places:
        if any(getattr(site.module, f'_{at}_hooks') for at in ('forward', 'forward_pre', 'backward', 'backward_pre')):
            raise ValueError(
                f'{site.name} = {_describe(site.module)} has hooks, which would be lost; convert the model before you '
                'register hooks, or remove them.')
    return places


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
    seen = {type(site.module) for site in places}
    for prefix, module in model.named_modules():  # one entry per class, at its first place
        if type(module) not in seen:
            seen.add(type(module))
            left += [LeftAlone(prefix or type(model).__name__, *call) for call in function_calls(module)]
    return tuple(left)


def _groups(places: list[Site], sharing: str) -> list[list[Site]]:
    """The places that share one module, per group."""
    stage_of = stages([site.name for site in places]) if sharing == 'stage' else {}
    groups: dict[Any, list[Site]] = {}
    for site in places:  # an aliased module stays one module, with every kind of sharing
        key = {'network': '', 'stage': stage_of.get(site.name)}.get(sharing, id(site.module))
        groups.setdefault(key, []).append(site)
    return list(groups.values())


def _placement(model: nn.Module) -> dict[str, Any]:
    """Device and dtype of the first parameter of a dtype that can be trained."""
    parameters = list(model.parameters())
    for parameter in parameters:
        if parameter.dtype in _TRAINABLE:
            return {'device': parameter.device, 'dtype': parameter.dtype}
    return {'device': parameters[0].device if parameters else torch.get_default_device(), 'dtype': None}


def _describe(module: nn.Module) -> str:
    return repr(module).replace(', inplace=True', '').replace('inplace=True', '')


def _functions(site: Site) -> list[Function]:
    """An activation as functions of float64 tensors on the CPU: the typical one, then the extremes of its slopes."""
    module, weight = site.module, getattr(site.module, 'weight', None)
    slopes: list[float] = []
    if isinstance(module, nn.RReLU):
        slopes = [(module.lower + module.upper) / 2, module.lower, module.upper]
    elif type(module).__name__ == 'PReLU' and isinstance(weight, Tensor):  # torch's or timm's
        held = torch.full((1,), 0.25) if weight.is_meta else weight.detach().double()
        slopes = [float(slope) for slope in (held.mean(), held.min(), held.max())]
    if slopes:
        return [functools.partial(nn.functional.leaky_relu, negative_slope=slope) for slope in slopes]

    def call(x: Tensor) -> Tensor:
        reason: object = 'its output is not of that kind'
        try:
            has_state = [*module.parameters(), *module.buffers()]
            function = copy.deepcopy(module).to('cpu', torch.float64) if has_state else module
            y = function(x.clone())  # the module may work in place
            if isinstance(y, Tensor) and y.shape == x.shape and not y.is_meta:
                return y.detach().double()
        except Exception as error:  # a module selected by a predicate can fail in any way
            reason = error
        raise ValueError(
            f'{site.name} = {_describe(module)} cannot be imitated: it is not a function of single float64 numbers on '
            f'the CPU ({reason}); exclude it with match=..., or pass preserve=False.')

    return [call]


def _deviation(new: ParametricActivation, values: dict[str, Any], site: Site) -> float:
    """Largest |new - old| over |x| <= FIT_RANGE, and over the channels where they differ."""
    weight = getattr(site.module, 'weight', None)
    if isinstance(new, PReLU0) and isinstance(weight, Tensor) and not weight.is_meta and torch.equal(weight, new.alpha):
        return 0.  # the slopes are equal per channel
    x = torch.linspace(-FIT_RANGE, FIT_RANGE, 3201, dtype=torch.float64, device='cpu')
    with torch.no_grad():
        y = type(new)(**values, device='cpu', dtype=torch.float64)(x)
        return max(float((y - function(x)).abs().max()) for function in _functions(site))
