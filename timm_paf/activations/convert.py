"""Put a parametric activation into any network."""
import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Optional, Union

import torch
from torch import Tensor, nn

from .fitting import FIT_RANGE, fit_activation
from .modules import ACTIVATIONS, ParametricActivation, PReLU0
from .sharing import activation_class
from .sites import ACTIVATION_TYPES, GATE_TYPES, Site, attribute_sites, function_calls, module_sites

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ['ConversionReport', 'LeftAlone', 'Replacement', 'convert_activations']

Match = Union[type, tuple[type, ...], Callable[[nn.Module], bool], None]
SHARING = ('network', 'stage', 'layer', 'channel')


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
    deviation: Optional[float]


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
    def max_deviation(self) -> Optional[float]:
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
        from rich.console import Console
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


class _FunctionSite(nn.Module):
    """An activation at a place that was called as a function, with arguments that torch's functions take."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        return self.act(x)


def convert_activations(
        model: nn.Module,
        name: str,
        *,
        sharing: str = 'network',
        match: Match = None,
        preserve: bool = True,
        example_input: Optional[Tensor] = None,
        **settings: Any,
) -> ConversionReport:
    """Replace the activations of a network, in place.

    Replaced are modules, wherever they stand (inside timm's norm-act layers as well), and functions kept as attributes
    (`self.activation = F.relu`). Calls written into a forward method cannot be replaced from outside; the report names
    the modules that make them. Gates (sigmoid, tanh, softmax) are left unless `match` asks for them.

    Args:
        model: Any network; changed in place.
        name: Registered name of a parametric activation.
        sharing: One module for the whole 'network'; one for each 'stage' (the first level of the module tree that
            divides the activations); one for each place ('layer'); or one value for each channel of each place
            ('channel'), which needs an `example_input` or a timm model that says its input size.
        match: What to replace: a type or tuple of types (exact types), or a predicate on modules. None replaces what
            usually stands between layers: ReLU, LeakyReLU, ELU, GELU, SiLU, Mish, Softplus and their relatives.
        preserve: Start where the new function equals the old one, or comes closest to it; places that share a module
            are fitted to the commonest activation among them. False starts at the paper's initial values.
        example_input: Input for one forward pass, for 'channel' only.
        **settings: Arguments of the activation, e.g. `learnable=False`; initial values here go before `preserve`.

    Returns:
        What was replaced and what was left, and why.

    Raises:
        ValueError: If the name or the sharing is unknown, the activation has no parameters, nothing matches, or the
            channels of a place cannot be found. The model is unchanged then.
        TypeError: If the model is no nn.Module, or a TorchScript module, whose code is fixed.

    Example:
        >>> model = timm.create_model('swin_tiny_patch4_window7_224')
        >>> print(timm_paf.convert_activations(model, 'pssilu', sharing='stage'))
    """
    cls = _checked(model, name, sharing)
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
    channels = _channels(model, places, example_input) if sharing == 'channel' else {}
    reference = next(iter(model.parameters()), torch.empty(0))
    placement = {'device': reference.device, 'dtype': reference.dtype if reference.is_floating_point() else None}

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
        values = {label: float(arguments.get(label, spec.init)) for label, spec in cls.parameter_specs.items()}
        if preserve and sharing == 'channel' and name.lower() == 'prelu0' and 'alpha' not in settings:
            _copy_slopes(first.module, new)
        for site in members:
            deviation = _deviation(new, values, site) if preserve else None
            replaced[site.name] = Replacement(site.name, _describe(site.module), first.name, values, deviation)
            planned.append((site, new))
    for site, new in planned:
        _put(site, new)
    return ConversionReport(name.lower(), sharing, tuple(replaced[site.name] for site in places), left)


def _groups(places: list[Site], sharing: str) -> list[list[Site]]:
    """The places that will hold one module, group by group."""
    stage_of = _stages([site.name for site in places]) if sharing == 'stage' else {}
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
    if sharing not in SHARING:
        raise ValueError(f'sharing = {sharing!r}: expected one of {", ".join(SHARING)}.')
    cls = activation_class(name)
    if not issubclass(cls, ParametricActivation):
        raise ValueError(f'{name!r} has no parameters; expected one of {", ".join(ACTIVATIONS)}.')
    return cls


def _predicate(match: Match) -> Callable[[nn.Module], bool]:
    if match is None:
        return lambda module: type(module) in ACTIVATION_TYPES
    if isinstance(match, type) or (isinstance(match, tuple) and all(isinstance(item, type) for item in match)):
        types = match if isinstance(match, tuple) else (match,)
        return lambda module: type(module) in types
    if not callable(match):
        raise TypeError(f'match = {match!r}: expected a type, a tuple of types, or a predicate on modules.')
    return match


def _left_alone(model: nn.Module, places: list[Site]) -> tuple[LeftAlone, ...]:
    taken = {site.name for site in places}
    left = [
        LeftAlone(site.name, _describe(site.module), 'a gate' if type(site.module) in GATE_TYPES else 'not matched')
        for site in [
            *module_sites(model, lambda module: type(module) in (*ACTIVATION_TYPES, *GATE_TYPES)),
            *attribute_sites(model)]
        if site.name not in taken]
    # a module is named where its class was first seen: twelve equal blocks are one fact
    seen: dict[type, LeftAlone] = {}
    for prefix, module in model.named_modules():
        if type(module) not in seen and (calls := function_calls(module)):
            seen[type(module)] = LeftAlone(
                prefix or type(model).__name__, ', '.join(calls),
                f'called in the code of {type(module).__name__}.forward')
    return (*left, *seen.values())


def _stages(names: list[str]) -> dict[str, str]:
    """The stage of each place: the shortest prefix at which the places divide into groups."""
    prefixes = {name: name.split('.')[0] for name in names}
    depth = 1
    # one prefix that holds more than half of the places is a container of stages (`layers`, `blocks`), not a stage
    while True:
        counts = {prefix: sum(value == prefix for value in prefixes.values()) for prefix in prefixes.values()}
        largest = max(counts, key=lambda prefix: counts[prefix])
        members = [name for name in names if prefixes[name] == largest]
        if counts[largest] <= len(names) / 2 or all(name.count('.') < depth for name in members):
            return prefixes
        depth = largest.count('.') + 2
        deeper = {name: '.'.join(name.split('.')[:depth]) for name in members}
        if len(set(deeper.values())) == len(members):  # every place would be a stage of its own
            return prefixes
        prefixes.update(deeper)


def _put(site: Site, module: nn.Module) -> None:
    if site.attribute in site.parent._modules:
        site.parent._modules[site.attribute] = module
    else:
        setattr(site.parent, site.attribute, _FunctionSite(module))
    if hasattr(site.parent, 'activation_relu_or_gelu'):
        # torch's TransformerEncoderLayer would otherwise run its fused ReLU or GELU in eval mode
        site.parent.activation_relu_or_gelu = 0


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
            y = module(x.clone())  # the module may work in place
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
    x = torch.linspace(-FIT_RANGE, FIT_RANGE, 3201, dtype=torch.float64)
    weight, alpha = getattr(site.module, 'weight', None), getattr(new, 'alpha', None)
    if isinstance(new, PReLU0) and isinstance(weight, Tensor) and not weight.is_meta and torch.equal(weight, alpha):
        return 0.  # slope by slope, see _copy_slopes
    with torch.no_grad():
        y = type(new)(**values, device='cpu', dtype=torch.float64)(x)
        return max(float((y - function(x)).abs().max()) for function in _functions(site))


def _channels(model: nn.Module, places: list[Site], example: Optional[Tensor]) -> dict[str, dict[str, int]]:
    """Number and dimension of the channels at each place, from one forward pass."""
    if example is None:
        size = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size')
        if size is None:
            raise ValueError(
                "sharing = 'channel' needs the number of channels at each place; pass example_input, a batch for one "
                'forward pass.')
        parameter = next(model.parameters())
        example = torch.zeros((2, *size), device=parameter.device, dtype=parameter.dtype)
    found: dict[int, dict[str, int]] = {}
    source: dict[int, tuple[Tensor, int]] = {}  # tensors are kept so that an id is not used twice

    def note_output(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            # timm's LayerNorm2d derives from nn.LayerNorm and keeps channels second
            last = isinstance(module, (nn.Linear, nn.LayerNorm)) and not type(module).__name__.endswith('2d')
            source[id(output)] = (output, -1 if last else 1)

    def note_input(site: nn.Module, inputs: tuple) -> None:
        x = inputs[0]
        guess = 1 if x.dim() in (2, 4, 5) else -1  # (B, N, C) otherwise
        dim = source[id(x)][1] if id(x) in source and x.dim() > 2 else guess
        found[id(site)] = {'num_parameters': x.shape[dim], 'channel_dim': dim}

    handles = [m.register_forward_hook(note_output) for m in model.modules() if not list(m.children())]
    functions = [site for site in places if site.attribute not in site.parent._modules]
    kept = [getattr(site.parent, site.attribute) for site in functions]
    for site, function in zip(functions, kept, strict=True):
        setattr(site.parent, site.attribute, _noting(function, partial(note_input, site.module)))
    handles += [site.module.register_forward_pre_hook(note_input) for site in places if site not in functions]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
        for site, function in zip(functions, kept, strict=True):
            setattr(site.parent, site.attribute, function)
        for module, mode in modes.items():
            module.training = mode
    missing = [site.name for site in places if id(site.module) not in found]
    if missing:
        raise ValueError(
            f"sharing = 'channel': {', '.join(missing[:3])} did not run in the forward pass, so the number of channels "
            "is unknown; leave these places out with match=..., or use sharing='layer'.")
    return {site.name: found[id(site.module)] for site in places}


def _noting(function: Callable, note: Callable[[tuple], None]) -> Callable:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        note(args)
        return function(*args, **kwargs)
    return wrapped
