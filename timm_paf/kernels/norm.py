"""BatchNorm and the activation after it in one pass over memory, which keeps BatchNorm's input alone."""
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules import module as hooks

from timm_paf._dtypes import compute_dtype
from timm_paf.activations import ACTIVATIONS, PSSiLUFixed, SSiLU
from timm_paf.activations.dispatch import _asked_for, _inner, apply
from timm_paf.kernels.choice import choose

__all__ = ['batch_norm_act', 'runs_as_written']

# name of the formula by exact class: a subclass may compute something else
_FORMULAS: dict[type, str] = {
    **{layer: name for name, layer in ACTIVATIONS.items()}, SSiLU: 'pssilu', PSSiLUFixed: 'pssilu', nn.ReLU: 'relu',
    nn.SiLU: 'silu'}
_PLAIN = (Tensor, nn.Parameter)
_BACKWARD = torch.ops.aten.native_batch_norm_backward
_INPUTS = 8  # tensors that `_BatchNormAct` gets


def batch_norm_act(
        x: Tensor, norm: nn.Module, act: nn.Module, shortcut: Tensor | None = None,
        shortcut_norm: nn.Module | None = None,
) -> Tensor:
    """Compute act(norm(x)), or act(norm(x) + shortcut), or act(norm(x) + shortcut_norm(shortcut)).

    With nn.BatchNorm2d and a parametric activation with one value of alpha, nn.ReLU or nn.SiLU, this takes one pass
    over memory on a GPU, and one more for the statistics of a batch. It keeps x and the shortcut for the backward pass,
    and recomputes BatchNorm's output there. Statistics and gradients are those of the modules, and results equal
    theirs up to rounding; on a CPU bit for bit. Where it saves nothing, and in all other cases, it calls the modules:
    other modules, hooks on them, tracing and compilation, transforms of torch.func, subclasses of tensors, one value
    per channel, on a GPU also float64 and parameters of a norm in eval mode that need a gradient.

    Args:
        x: Input of norm, (B, C, H, W).
        norm: Normalisation of x.
        act: Activation.
        shortcut: Tensor like x.
        shortcut_norm: Normalisation of the shortcut.

    Returns:
        Tensor like x.
    """
    if torch.compiler.is_compiling() or (plan := _plan(x, norm, act, shortcut, shortcut_norm)) is None:
        y = norm(x)
        if shortcut is not None:
            added = shortcut if shortcut_norm is None else shortcut_norm(shortcut)
            y = y + added if y is x else y.add_(added)  # nn.Identity returns x itself
        return act(y)
    inputs = [x, *(_inner(p) for p in plan.parameters), norm.weight, norm.bias, shortcut, None, None]
    if shortcut_norm is not None:
        inputs[-2:] = shortcut_norm.weight, shortcut_norm.bias
    return _BatchNormAct.apply(*inputs, plan)


def runs_as_written(x: Any, *modules: nn.Module) -> bool:
    """Whether modules on x do nothing but their `forward`, eager: no hooks, no tracing, compilation or transforms."""
    return not (
        torch.compiler.is_compiling() or type(x) not in _PLAIN or torch.jit.is_tracing()
        or forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None or hooks._has_any_global_hook()
        or any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            or m._compiled_call_impl is not None or 'forward' in m.__dict__ for m in modules))


class Norm(NamedTuple):
    """What a BatchNorm does apart from its weight and bias."""
    mean: Tensor | None  # running statistics: read, or with statistics of the batch updated unless None
    var: Tensor | None
    momentum: float
    eps: float
    counter: Tensor | None  # of updates


class Plan(NamedTuple):
    """How one call of `batch_norm_act` is computed."""
    way: Any  # the functions `forward` and `backward` of a device
    kernels: Any  # of the activation
    name: str
    parameters: tuple[Tensor | None, Tensor | None]  # alpha and beta
    batch: bool  # normalise with the statistics of the batch
    norm: Norm
    shortcut_norm: Norm | None


def _plan(
        x: Tensor, norm: nn.Module, act: nn.Module, shortcut: Tensor | None, shortcut_norm: nn.Module | None,
) -> Plan | None:
    """How to compute a call in one pass; None to call the modules."""
    norms: list[Any] = [norm] if shortcut_norm is None else [norm, shortcut_norm]  # nn.BatchNorm2d or others
    name = _FORMULAS.get(type(act))
    if name is None or not runs_as_written(x, act, *norms) or any(type(n) is not nn.BatchNorm2d for n in norms):
        return None
    on_cpu, grad = _on_cpu(x), torch.is_grad_enabled()
    batch = bool(norm.training or norm.running_mean is None)
    if on_cpu and (not batch or not grad or name in ('relu', 'silu')):
        return None
    if shortcut is not None and (shortcut.shape != x.shape or shortcut.dtype != x.dtype):
        return None
    tensors = [tensor for n in norms for tensor in (n.weight, n.bias, n.running_mean, n.running_var)]
    if not all(_fits(n, x, batch) for n in norms) or not _precise(x, tensors, on_cpu):
        return None
    alpha: Any = getattr(act, 'alpha', None)
    beta: Any = getattr(act, 'beta', None)
    if any(p is not None and p.numel() != 1 for p in (alpha, beta)):
        return None
    if type(act) is SSiLU:
        alpha = torch.ones_like(beta)
    if not (batch or on_cpu) and grad and any(
            p is not None and p.requires_grad for p in (alpha, beta, *(p for n in norms for p in (n.weight, n.bias)))):
        return None
    kernels = choose('psilu' if name in ('relu', 'silu') else name, x, alpha, beta, shortcut, *tensors)
    if kernels is None:
        return None
    return Plan(
        _way(on_cpu), kernels, name, (alpha, beta), batch, _settings(norm),
        None if shortcut_norm is None else _settings(shortcut_norm))


def _fits(norm: Any, x: Tensor, batch: bool) -> bool:
    """Whether x can be normalised; the module itself raises the errors."""
    return (
        x.dim() == 4 and x.shape[1] == norm.num_features and x.numel() > (norm.num_features if batch else 0)
        and norm.momentum is not None and (norm.running_mean is None) == (norm.running_var is None)
        and (norm.training or norm.running_mean is None) == batch)


def _precise(x: Tensor, tensors: list[Tensor | None], on_cpu: bool) -> bool:
    """Whether the norms can be computed again with the same result."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    affine = all(tensor is not None for tensor in tensors[::4] + tensors[1::4])
    if on_cpu:  # without a weight in float32, torch rounds the statistics of half precision
        wide = compute_dtype(x.dtype)
        return dtypes <= {wide} and (affine or x.dtype == wide)
    return affine and dtypes <= {torch.float32, x.dtype} and (
        x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))


def _settings(norm: Any) -> Norm:
    read = not norm.training or norm.track_running_stats
    counter = norm.num_batches_tracked if norm.training and norm.track_running_stats else None
    return Norm(
        norm.running_mean if read else None, norm.running_var if read else None, norm.momentum, norm.eps, counter)


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == 'cpu'


def _way(on_cpu: bool) -> Any:
    """The functions `forward` and `backward` of a device."""
    if on_cpu:
        return Cpu
    from timm_paf.kernels import gpu_norm
    return gpu_norm


class Cpu:
    """Both passes on a CPU, by torch's BatchNorm and the kernels of the activation; statistics of the batch only."""

    @staticmethod
    def forward(
            plan: Plan, x: Tensor, alpha: Tensor, beta: Tensor | None, weight: Tensor | None, bias: Tensor | None,
            shortcut: Tensor | None, weight2: Tensor | None, bias2: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The result, and mean and 1/sqrt(variance + eps) of each norm."""
        def normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm) -> tuple[Tensor, ...]:
            return torch.native_batch_norm(x, weight, bias, norm.mean, norm.var, True, norm.momentum, norm.eps)

        y, *statistics = normalised(x, weight, bias, plan.norm)
        if plan.shortcut_norm is not None:
            assert shortcut is not None
            shortcut, *others = normalised(shortcut, weight2, bias2, plan.shortcut_norm)
            statistics += others
        if shortcut is not None:
            y += shortcut
        return plan.kernels.value(plan.name, y, alpha, beta, 1), statistics

    @staticmethod
    def backward(
            plan: Plan, grad: Tensor, statistics: list[Tensor], need_params: bool, x: Tensor, alpha: Tensor,
            beta: Tensor | None, weight: Tensor | None, bias: Tensor | None, shortcut: Tensor | None,
            weight2: Tensor | None, bias2: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """The gradients in the sum of both branches, in alpha and in beta."""
        y = Cpu.again(x, weight, bias, *statistics[:2])
        if plan.shortcut_norm is not None:
            assert shortcut is not None
            shortcut = Cpu.again(shortcut, weight2, bias2, *statistics[2:])
        if shortcut is not None:
            y += shortcut
        return plan.kernels.gradients(plan.name, grad, y, alpha, beta, 1, need_params)

    @staticmethod
    def again(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor) -> Tensor:
        """The normalised tensor again, bit for bit: torch multiplies weight and invstd first."""
        scale = invstd if weight is None else invstd * weight
        return torch.native_batch_norm(x, scale, bias, mean, torch.ones_like(mean), False, 0., 0.)[0]


class _BatchNormAct(torch.autograd.Function):
    """Autograd function of (x, alpha, beta, weight, bias, shortcut, its norm's weight and bias, plan)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *inputs, plan = args
        for norm in (plan.norm, plan.shortcut_norm):
            if norm is not None and norm.counter is not None:
                norm.counter.add_(1)
        y, statistics = plan.way.forward(plan, *inputs)
        ctx.plan = plan
        ctx.save_for_backward(*inputs, *statistics)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan, saved, needs = ctx.plan, ctx.saved_tensors, ctx.needs_input_grad
        inputs, statistics = saved[:_INPUTS], list(saved[_INPUTS:])
        # a gradient that will be differentiated again needs differentiable operations
        if torch.is_grad_enabled() or choose(
                'psilu' if plan.name in ('relu', 'silu') else plan.name, inputs[0], grad) is None:
            return *_differentiated(plan, grad, inputs, statistics, needs), None
        x, alpha, beta, weight, _, shortcut, weight2, _ = inputs
        _, need_alpha, need_beta = _asked_for(ctx)
        results = plan.way.backward(plan, grad, statistics, need_alpha or need_beta, *inputs)
        if plan.batch:
            dz, dalpha, dbeta = results
            own = _norm_gradients(dz, x, weight, plan.norm, statistics[:2], (needs[0], *needs[3:5]))
            other = (dz if needs[5] else None, None, None) if plan.shortcut_norm is None else _norm_gradients(
                dz, shortcut, weight2, plan.shortcut_norm, statistics[2:], needs[5:8])
        else:
            dx, dshortcut, dalpha, dbeta = results
            own, other = (dx, None, None), (dshortcut, None, None)
        return (
            own[0], dalpha.to(alpha.dtype) if need_alpha and dalpha is not None else None,
            dbeta.to(beta.dtype) if need_beta and dbeta is not None else None, *own[1:], *other, None)


def _norm_gradients(
        grad: Tensor, x: Tensor, weight: Tensor | None, norm: Norm, statistics: list[Tensor],
        needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of a norm with the statistics of the batch, in x, weight and bias."""
    if not any(needs):
        return None, None, None
    found = _BACKWARD(grad, x, weight, None, None, *statistics, True, norm.eps, list(needs))
    return tuple(gradient if need else None for gradient, need in zip(found, needs, strict=True))


def _differentiated(
        plan: Plan, grad: Tensor, inputs: tuple[Tensor | None, ...], statistics: list[Tensor], needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """The gradients by differentiation of torch's operations, which may be repeated."""
    again = torch.is_grad_enabled()
    x, alpha, beta, weight, bias, shortcut, weight2, bias2 = inputs
    with torch.enable_grad():
        def normalised(x: Any, weight: Tensor | None, bias: Tensor | None, norm: Norm, mean: Any, var: Any) -> Tensor:
            if plan.batch:
                mean = var = None
            return F.batch_norm(x, mean, var, weight, bias, plan.batch, 0., norm.eps)

        y = normalised(x, weight, bias, plan.norm, *statistics[:2])
        if plan.shortcut_norm is not None:
            shortcut = normalised(shortcut, weight2, bias2, plan.shortcut_norm, *statistics[2:])
        if shortcut is not None:
            y = y + shortcut
        if plan.name in ('relu', 'silu'):
            y = F.relu(y) if plan.name == 'relu' else F.silu(y)
        else:
            assert alpha is not None
            y = apply(plan.name, y, alpha, beta, 1)
        places = [i for i in range(_INPUTS) if needs[i]]
        wanted = [tensor for i in places if (tensor := inputs[i]) is not None]
        found = torch.autograd.grad(y, wanted, grad, create_graph=again, allow_unused=True)
    gradients: list[Tensor | None] = [None] * _INPUTS
    for place, gradient in zip(places, found, strict=True):
        gradients[place] = gradient
    return gradients
