"""Building blocks of the formulas in `functional`: elementwise, stable in float32, compiled by TorchScript.

They take tensors of one floating dtype, at least float32. The formulas made of them keep these rules:

- exp, log and sqrt never get an argument that overflows, because `inf * 0` in the branch that is not taken is NaN;
- a factor that has vanished makes the product 0 also where x is infinite, which is the limit of each formula;
- |x| above 1e18 counts as 1e18 inside sigmoid, exp and sqrt, which have reached their limit long before;
- a sigmoid or exponential that is too small for its dtype is kept as two factors until it is multiplied by x: in
  float32, 100 exp(-100) is a normal number and exp(-100) is not;
- no `torch.where` on x, because it costs more than both branches;
- NaN stays NaN, in the value and in the partial derivatives.
"""
import torch
from torch import Tensor

from timm_paf.activations.constraints import ALPHA_MAX, BETA_MAX, PSOFTPLUS_ALPHA_MIN

# Parameters as they enter a formula. The limits are defaults because TorchScript reads defaults, not globals.


def magnitude(parameter: Tensor) -> Tensor:
    """|p| whose derivative at p = 0 is +1, not 0, so that a parameter at exactly 0 learns."""
    return torch.where(parameter < 0, -parameter, parameter)


def sharpness(alpha: Tensor, greatest: float = ALPHA_MAX) -> Tensor:
    """|alpha| inside its range."""
    return magnitude(alpha).clamp(max=greatest)


def softplus_sharpness(alpha: Tensor, least: float = PSOFTPLUS_ALPHA_MIN, greatest: float = ALPHA_MAX) -> Tensor:
    """|alpha| inside the range of psoftplus."""
    return magnitude(alpha).clamp(min=least, max=greatest)


def shift(beta: Tensor, greatest: float = BETA_MAX) -> Tensor:
    """|beta| inside its range."""
    return magnitude(beta).clamp(max=greatest)


def reach(vanishes: Tensor, like: Tensor, huge: float = 3.4e38) -> Tensor:
    """Bound on |x| in a product: finite where the other factor vanishes as x -> inf, else inf."""
    return torch.full_like(like, float('inf')).masked_fill(vanishes, huge)


def near(x: Tensor, far: float = 1e18) -> Tensor:
    """Limit x to |x| <= 1e18."""
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
    """1 for x > 0, 0 for x <= 0, NaN for NaN (`torch.sign` gives 0 there)."""
    return x.sign().clamp(min=0) + x.clamp(-1, 1) * 0


def softplus_rest(size: Tensor, a: Tensor, greatest: float = 80.) -> Tensor:
    """log(1 + exp(-size))/a for size >= 0; beyond 80 the logarithm is linear."""
    bounded = size.clamp(max=greatest)
    return torch.log1p(torch.exp(-bounded)) / a * torch.exp(bounded - size)


def saturation(x: Tensor) -> tuple[Tensor, Tensor]:
    """(sqrt(x^2+1) - 1)/x and x/sqrt(x^2+1) for x >= 0, between 0 and 1; nothing cancels, and `near` can be squared."""
    bounded = near(x).clamp(min=0)
    root = (bounded * bounded + 1).sqrt()
    return bounded / (root + 1), bounded / root


def odds_factors(t: Tensor, least: float = -80.) -> tuple[Tensor, Tensor, Tensor]:
    """c/s, s and tail: sigmoid(t) = s tail as in `logistic`, and exp(-t) for t > -80."""
    bounded = t.clamp(min=least)
    odds = torch.exp(-bounded)
    return odds, 1 / (1 + odds), torch.exp(t - bounded)
