"""Value and partial derivatives of every activation, elementwise, in closed form.

One pair of functions for each activation of Dai, Mahloujifar and Mittal (2021), arXiv 2110.05626. The values are
written so that TorchScript compiles them; the partials are df/dx, df/dalpha and df/dbeta. They see tensors of one
floating dtype that is at least float32, and constants that broadcast against x. Three rules hold in all of them:

- exp, log and sqrt never see an argument that overflows, because `inf * 0` in the branch not taken is NaN;
- a product with a factor that has underflowed to 0 is 0 also where x is infinite (`times`), the limit of each formula;
- NaN goes through to the value.

Notation: t = |alpha| x, s = sigmoid(t).
"""
import torch
from torch import Tensor


def times(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor, with inf * 0 = 0."""
    return torch.where(torch.isinf(x) & (factor == 0), torch.zeros_like(x), x * factor)


# The ranges stand as defaults of the functions below because TorchScript reads defaults but no module constants.
ALPHA_MAX = 1e4  # largest |alpha| (or alpha^2) inside a sigmoid: beyond it the sigmoid is a step for every practical x
PSOFTPLUS_ALPHA_MIN = 1e-3  # psoftplus(0) = log(2)/|alpha| grows without bound as |alpha| -> 0
BETA_MAX = 0.99  # pssilu divides by 1 - |beta|


def sharpness(alpha: Tensor, greatest: float = ALPHA_MAX) -> Tensor:
    """|alpha| inside its range."""
    return alpha.abs().clamp(max=greatest)


def squared_sharpness(alpha: Tensor, greatest: float = ALPHA_MAX) -> Tensor:
    """alpha^2 inside its range."""
    return alpha.square().clamp(max=greatest)


def softplus_sharpness(alpha: Tensor, least: float = PSOFTPLUS_ALPHA_MIN, greatest: float = ALPHA_MAX) -> Tensor:
    """|alpha| inside the range of psoftplus."""
    return alpha.abs().clamp(min=least, max=greatest)


def shift(beta: Tensor, greatest: float = BETA_MAX) -> Tensor:
    """|beta| inside its range."""
    return beta.abs().clamp(max=greatest)


def prelu0(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, times(x, alpha))


def prelu0_partials(x, alpha, beta, need_params):
    dx = torch.where(x > 0, torch.ones_like(x), alpha)
    return dx, x.clamp(max=0) if need_params else None, None


def preluplus(x: Tensor, alpha: Tensor) -> Tensor:
    return times(x.clamp(min=0), alpha)


def preluplus_partials(x, alpha, beta, need_params):
    dx = torch.where(x > 0, alpha, torch.zeros_like(x))
    return dx, x.clamp(min=0) if need_params else None, None


def pelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def pelu_partials(x, alpha, beta, need_params):
    negative = x.clamp(max=0)
    dx = torch.where(x > 0, torch.ones_like(x), alpha * torch.exp(negative))
    return dx, torch.expm1(negative) if need_params else None, None


def peluplus(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, times(x, alpha), torch.expm1(x.clamp(max=0)))


def peluplus_partials(x, alpha, beta, need_params):
    dx = torch.where(x > 0, alpha, torch.exp(x.clamp(max=0)))
    return dx, x.clamp(min=0) if need_params else None, None


def psilu(x: Tensor, a: Tensor) -> Tensor:
    return times(x, torch.sigmoid(times(x, a)))


def psilu_partials(x, a, beta, need_params):
    t = times(x, a)
    s = torch.sigmoid(t)
    slope = s * torch.sigmoid(-t)  # not s * (1 - s): that has no correct digit left for large t
    dx = s + times(t, slope)
    return dx, times(x, times(x, slope)) if need_params else None, None


def psoftplus(x: Tensor, a: Tensor) -> Tensor:
    # max(x, 0) + log1p(exp(-|t|))/a: the linear part is exact, the exponential is at most 1
    return x.clamp(min=0) + torch.log1p(torch.exp(-times(x, a).abs())) / a


def psoftplus_partials(x, a, beta, need_params):
    t = times(x, a)
    dx = torch.sigmoid(t)
    if not need_params:
        return dx, None, None
    # (x s - f)/a with both terms of one sign for every x, so nothing cancels
    distance = t.abs()
    da = -(times(x.abs(), torch.sigmoid(-distance)) + torch.log1p(torch.exp(-distance)) / a) / a
    return dx, da, None


def _saturation(x: Tensor) -> Tensor:
    """(sqrt(x^2+1) - 1)/x for x >= 0, between 0 and 1; no square is formed, and 1e18 stands for all that is larger."""
    bounded = x.clamp(min=0, max=1e18)
    return bounded / (torch.hypot(bounded, torch.ones_like(bounded)) + 1)


def reblu(x: Tensor, alpha: Tensor) -> Tensor:
    return times(x.clamp(min=0), 1 + alpha * _saturation(x))


def reblu_partials(x, alpha, beta, need_params):
    bounded = x.clamp(min=0, max=1e18)
    dx = torch.where(x > 0, 1 + alpha * (bounded / torch.hypot(bounded, torch.ones_like(bounded))), torch.zeros_like(x))
    return dx, times(x.clamp(min=0), _saturation(x)) if need_params else None, None


def pssilu(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return times(x, (torch.sigmoid(times(x, a)) - b) / (1 - b))


def pssilu_partials(x, a, b, need_params):
    t = times(x, a)
    s = torch.sigmoid(t)
    complement = torch.sigmoid(-t)
    slope = s * complement
    dx = (s - b + times(t, slope)) / (1 - b)
    if not need_params:
        return dx, None, None
    da = times(x, times(x, slope)) / (1 - b)
    db = -times(x, complement) / (1 - b).square()
    return dx, da, db
