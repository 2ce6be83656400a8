"""Value and partial derivatives of every activation, elementwise, in closed form.

One pair of functions for each activation of Dai, Mahloujifar and Mittal (2021), arXiv 2110.05626. The values are
written so that TorchScript compiles them; the partials are df/dx, df/dalpha and df/dbeta. They see tensors of one
floating dtype that is at least float32, and constants that broadcast against x. These rules hold in all of them:

- exp, log and sqrt never see an argument that overflows, because `inf * 0` in the branch not taken is NaN;
- a factor that has vanished makes the product 0 also where x is infinite, the limit of each formula;
- |x| beyond 1e18 counts as 1e18 inside sigmoid, exp and sqrt, which have reached their limit long before;
- a sigmoid or exponential that is too small for its dtype is kept as two factors until x has been multiplied in, for
  100 exp(-100) is a number in float32 and exp(-100) is hardly one;
- there is no choice between branches by `torch.where` on x, which costs more than both branches;
- NaN goes through to the value and to the partials.

Notation: t = |alpha| x, s = sigmoid(t), c = 1 - s = sigmoid(-t).
"""
import torch
from torch import Tensor

# The ranges stand as defaults of the functions below because TorchScript reads defaults but no module constants.
ALPHA_MAX = 1e4  # largest |alpha| (or alpha^2) inside a sigmoid: beyond it the sigmoid is a step for every practical x
PSOFTPLUS_ALPHA_MIN = 1e-3  # psoftplus(0) = log(2)/|alpha| grows without bound as |alpha| -> 0
BETA_MAX = 0.99  # pssilu divides by 1 - |beta|


def magnitude(parameter: Tensor) -> Tensor:
    """|p| whose derivative at p = 0 is +1, not 0, so that a parameter at exactly 0 learns."""
    return torch.where(parameter < 0, -parameter, parameter)


def sharpness(alpha: Tensor, greatest: float = ALPHA_MAX) -> Tensor:
    """|alpha| inside its range."""
    return magnitude(alpha).clamp(max=greatest)


def squared_sharpness(alpha: Tensor, greatest: float = ALPHA_MAX) -> Tensor:
    """alpha^2 inside its range."""
    return alpha.square().clamp(max=greatest)


def softplus_sharpness(alpha: Tensor, least: float = PSOFTPLUS_ALPHA_MIN, greatest: float = ALPHA_MAX) -> Tensor:
    """|alpha| inside the range of psoftplus."""
    return magnitude(alpha).clamp(min=least, max=greatest)


def shift(beta: Tensor, greatest: float = BETA_MAX) -> Tensor:
    """|beta| inside its range."""
    return magnitude(beta).clamp(max=greatest)


def reach(vanishes: Tensor, like: Tensor, huge: float = 3.4e38) -> Tensor:
    """How far x may go in a product: a finite number where the other factor vanishes as x -> inf, else inf."""
    return torch.full_like(like, float('inf')).masked_fill(vanishes, huge)


def near(x: Tensor, far: float = 1e18) -> Tensor:
    """X for |x| < 1e18, and finite beyond."""
    return x.clamp(-far, far)


def saturates(a: Tensor) -> Tensor:
    """Whether sigmoid(-a x) is 0 at the largest `near(x)`."""
    return a > 1e-16


def logistic(t: Tensor, least: float = -80.) -> tuple[Tensor, Tensor]:
    """sigmoid(t) as two factors: one that is a normal number in float32, and an exponential that is 1 for t > -80."""
    bounded = t.clamp(min=least)
    return torch.sigmoid(bounded), torch.exp(t - bounded)


def negative(x: Tensor) -> Tensor:
    """min(x, 0) for |x| < 1e18, with a slope of 1 at 0 (TorchScript gives that of `clamp(max=0)` as 0)."""
    bounded = near(x)
    return bounded - torch.relu(bounded)


def expm1_negative(x: Tensor) -> Tensor:
    """exp(x) - 1 for x < 0, else 0, by tanh, which ONNX has and which is faster than `expm1` on the CPU."""
    below = negative(x)
    half = below * 0.5
    lost = below - (half + half)  # the last digit of a subnormal number
    return torch.tanh(half) * (torch.exp(below) + 1) + lost


def step(x: Tensor) -> Tensor:
    """1 for x > 0, 0 for x <= 0, NaN for NaN (which `torch.sign` takes for 0)."""
    return x.sign().clamp(min=0) + x.clamp(-1, 1) * 0


def prelu0(x: Tensor, alpha: Tensor) -> Tensor:
    # x as the sum of its two sides, the negative one with the slope 1 at 0; infinite only on the side that it is on
    limit = reach(alpha == 0, alpha)
    bounded = torch.maximum(x.clamp(max=3.4e38), -limit)
    return torch.relu(x) + (bounded - torch.relu(bounded)) * alpha


def prelu0_partials(x, alpha, beta, need_params):
    dx = torch.lerp(alpha, torch.ones_like(alpha), step(x))
    return dx, x.clamp(max=0) if need_params else None, None


def preluplus(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.minimum(torch.relu(x), reach(alpha == 0, alpha)) * alpha


def preluplus_partials(x, alpha, beta, need_params):
    return step(x) * alpha, torch.relu(x) if need_params else None, None


def pelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.relu(x) + expm1_negative(x) * alpha


def pelu_partials(x, alpha, beta, need_params):
    below = x.clamp(max=0)
    dx = torch.lerp(torch.exp(below) * alpha, torch.ones_like(alpha), step(x))
    return dx, torch.expm1(below) if need_params else None, None


def peluplus(x: Tensor, alpha: Tensor) -> Tensor:
    return preluplus(x, alpha) + expm1_negative(x)


def peluplus_partials(x, alpha, beta, need_params):
    dx = torch.lerp(torch.exp(x.clamp(max=0)), alpha, step(x))
    return dx, torch.relu(x) if need_params else None, None


def psilu(x: Tensor, a: Tensor) -> Tensor:
    s, tail = logistic(near(x) * a)
    return torch.maximum(x, -reach(saturates(a), a)) * s * tail


def psilu_partials(x, a, beta, need_params):
    bounded = near(x)
    t = bounded * a
    s, tail = logistic(t)
    if not need_params:
        return (1 + t * torch.sigmoid(-t)) * s * tail, None, None
    c, complement_tail = logistic(-t)
    dx = (1 + t * c * complement_tail) * s * tail
    return dx, (bounded * s) * (bounded * c) * (tail * complement_tail), None


def psoftplus(x: Tensor, a: Tensor) -> Tensor:
    # max(x, 0) + log1p(exp(-|t|))/a: the linear part is exact, the exponential is at most 1. `maximum` has the slope
    # 1/2 at 0, and so has the whole.
    size = (near(x) * a).abs()
    return torch.maximum(x, x.new_zeros(())) + _softplus_rest(size, a)


def _softplus_rest(size: Tensor, a: Tensor, greatest: float = 80.) -> Tensor:
    """log(1 + exp(-size))/a for size >= 0; beyond 80 the logarithm is linear."""
    bounded = size.clamp(max=greatest)
    return torch.log1p(torch.exp(-bounded)) / a * torch.exp(bounded - size)


def psoftplus_partials(x, a, beta, need_params):
    bounded = near(x)
    t = bounded * a
    s, tail = logistic(t)
    dx = s * tail
    if not need_params:
        return dx, None, None
    # (x s - f)/a with both terms of one sign for every x, so nothing cancels
    size = t.abs()
    s, tail = logistic(-size)
    return dx, -(bounded.abs() * s * tail + _softplus_rest(size, a)) / a, None


def saturation(x: Tensor) -> tuple[Tensor, Tensor]:
    """(sqrt(x^2+1) - 1)/x and x/sqrt(x^2+1) for x >= 0, between 0 and 1; nothing cancels, and `near` can be squared."""
    bounded = near(x).clamp(min=0)
    root = (bounded * bounded + 1).sqrt()
    return bounded / (root + 1), bounded / root


def reblu(x: Tensor, alpha: Tensor) -> Tensor:
    # the factor vanishes for x -> inf if alpha = -1
    limit = reach(alpha == -1, alpha)
    return torch.minimum(torch.relu(x), limit) * (saturation(x)[0] * alpha + 1)


def reblu_partials(x, alpha, beta, need_params):
    chord, slope = saturation(x)
    dx = step(x) * (slope * alpha + 1)
    return dx, torch.relu(x) * chord if need_params else None, None


def _odds(t: Tensor, least: float = -80.) -> tuple[Tensor, Tensor, Tensor]:
    """c/s, s and tail: sigmoid(t) = s tail as in `logistic`, and exp(-t) for t > -80."""
    bounded = t.clamp(min=least)
    odds = torch.exp(-bounded)
    return odds, 1 / (1 + odds), torch.exp(t - bounded)


def pssilu(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # s - b = s (1 - b - b c/s): where s is near 1, the difference s - b has lost what 1 - b still has
    odds, s, tail = _odds(near(x) * a)
    # the last factor vanishes for x -> -inf if b = 0, and for every x if a = 0 and b = 1/2
    limit = reach(((b == 0) & saturates(a)) | ((b == 0.5) & ~saturates(a)), a + b)
    bounded = torch.minimum(torch.maximum(x, -limit), limit)
    return bounded * (s / (1 - b)) * (tail * (1 - b) - odds * b)


def pssilu_partials(x, a, b, need_params):
    bounded = near(x)
    t = bounded * a
    odds, s, tail = _odds(t)
    dx = (s / (1 - b)) * (tail * ((1 - b) + t * (odds * s)) - odds * b)
    if not need_params:
        return dx, None, None
    c, complement_tail = logistic(-t)
    scaled = c / (1 - b)
    da = (bounded * s) * (bounded * scaled) * (tail * complement_tail)
    db = -torch.minimum(x, reach(saturates(a), a)) * (scaled / (1 - b)) * complement_tail
    return dx, da, db
