"""Properties of an activation's graph: breaks, changes of sign, curvature, limits.

Derivatives come from autograd in float64, on a grid that is geometric around 0, so that sharpness 1e4 and 1e-3 have the
same resolution. Kinks and limits of slopes are those of the closed form where it is known, and are searched otherwise.
A zero is exact to about 1e-12 relative, a greatest curvature too (its place to 1e-6).
"""
import dataclasses
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from timm_paf.activations.elementwise import Elementwise

__all__ = ['Break', 'Curve', 'Interval', 'intervals']

Interval = tuple[float, float]

_EPS = 2.**-52
_DECADES, _PER_DECADE = (-12, 9), 48  # of the grid, in units of the activation's own scale
_BREAK_RANGE = 1e3  # limit of |x| in the search for breaks
_LEAST_JUMP = 1e-6  # in that search, relative to the function: torch's softplus jumps by 2e-9 where it becomes linear
_MOST_RUNS = 64  # intervals of one sign
_PARTS, _ROUNDS = 256, 6  # divisions of an interval in that search: 48 bits, down to neighbouring floats


@dataclasses.dataclass(frozen=True)
class Break:
    """A jump of a function or one of its first two derivatives.

    Attributes:
        x: The place.
        order: 0 if the value jumps, 1 for a kink (the slope jumps), 2 if only the second derivative jumps.
        jump: Value on the right minus value on the left.
    """
    x: float
    order: int
    jump: float


class _Run(NamedTuple):
    """An interval on which a derivative has one sign."""
    left: float
    right: float
    sign: int


class _Bracket(NamedTuple):
    """Points on both sides of a suspected break, and the smallest jumps of f, f' and f'' that count."""
    x: float
    left: float
    right: float
    least_jumps: tuple[float, float, float]


def intervals(runs: Iterable[_Run], sign: int, end: float = math.inf) -> tuple[Interval, ...]:
    """Select the runs of one sign up to `end`; runs that meet are joined."""
    found: list[Interval] = []
    for run in runs:
        if run.sign == sign and run.left < run.right:
            start = found.pop()[0] if found and found[-1][1] == run.left else run.left
            found.append((start, min(run.right, end)))
    return tuple(found)


class Curve:
    """f, f' and f'' of one activation on a grid, and searches between its points.

    The grid excludes 0, because at a kink autograd returns any value between those of the two sides.
    """

    def __init__(self, activation: Elementwise) -> None:
        self.function, self.known = activation.function, activation.known
        self.scale = activation.known.scale if activation.known else 1.
        self.name = activation.name
        low, high = _DECADES
        positive = torch.logspace(low, high, (high - low) * _PER_DECADE + 1, dtype=torch.float64, device='cpu')
        x = torch.cat([-positive.flip(0), positive]) * self.scale
        self._check(x)
        derivatives = self.derivatives(x)
        finite = derivatives.isfinite().all(dim=0)
        self.x, self.y = x[finite], derivatives[:, finite]
        self.breaks = self._breaks()
        measured = (self._slope_limit(0), self._slope_limit(-1))
        slopes = activation.known.slopes if activation.known and activation.known.slopes else measured
        self.slopes = (slopes[0] + 0., slopes[1] + 0.)  # no -0

    def value(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.function(x.clone())

    def derivatives(self, x: Tensor, order: int = 2) -> Tensor:
        """Compute f, f' and, for order 2, f'' at x of shape (N,), as a tensor of shape (order + 1, N)."""
        x = x.detach().clone().requires_grad_()
        y = self.function(x.clone())  # a copy, since the activation may work in place
        if not y.requires_grad:
            raise ValueError(f'{self.name} cannot be differentiated: its output does not depend on x through autograd.')
        first, = torch.autograd.grad(y.sum(), x, create_graph=order == 2, materialize_grads=True)
        if order == 1:
            return torch.stack([y, first]).detach()
        second = torch.zeros_like(x)
        if first.requires_grad:
            try:
                second, = torch.autograd.grad(first.sum(), x, materialize_grads=True)
            except RuntimeError as error:
                raise ValueError(f'{self.name} cannot be differentiated twice: {error}.') from error
        return torch.stack([y, first, second]).detach()

    def _check(self, x: Tensor) -> None:
        y = self.value(x)
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
            what = f'{y.dtype} {tuple(y.shape)}' if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f'{self.name} gave {what} for float64 {tuple(x.shape)}; expected the same of both.')
        if not torch.allclose(self.value(x[::7]), y[::7], rtol=1e-9, atol=1e-12, equal_nan=True):
            raise ValueError(f'{self.name} is not elementwise: an output depends on other inputs.')
        strange = (x.abs() <= 8) & ~y.isfinite()
        if strange.any():
            raise ValueError(f'{self.name} is {float(y[strange][0])} at x = {float(x[strange][0]):.6g}; expected a '
                             'function that is finite on [-8, 8].')

    # breaks

    def _breaks(self) -> tuple[Break, ...]:
        """Find the jumps of f, f' and f''."""
        found: list[Break] = []
        self.sides: dict[float, tuple[float, float]] = {}
        for x, left, right, least in self._known_brackets() if self.known else self._suspects():
            jumps = self.derivatives(torch.tensor([left, right], dtype=torch.float64, device='cpu')).diff(dim=1)
            order = next((n for n, size in enumerate(least) if float(jumps[n].abs()) > size), None)
            if order is not None:
                found.append(Break(x, order, float(jumps[order])))
                self.sides[x] = (left, right)
        return tuple(found)

    def _known_brackets(self) -> list[_Bracket]:
        brackets = []
        for x in self.known.breaks if self.known else ():
            step = 4 * _EPS * max(abs(x), self.scale)
            sides = torch.tensor([x - step, x + step], dtype=torch.float64, device='cpu')
            size = self.derivatives(sides).abs().amax(dim=1).tolist()
            # a learned number that differs by 1e-9 from the one without a kink makes a kink
            least = (1e-9 * self.scale * size[1] + 1e-12 * size[0], 1e-12 * (size[1] + size[2]), 1e-12 * size[2])
            brackets.append(_Bracket(x, x - step, x + step, least))
        return brackets

    def _suspects(self) -> list[_Bracket]:
        """Search cells of the grid in which f, f' or f'' changes unlike in its neighbours, and narrow them down."""
        near = self.x.abs() <= 10
        floor = _LEAST_JUMP * self.y[:, near].abs().amax(dim=1, keepdim=True)
        steps = self.y.diff(dim=1)
        excess = (steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2).abs()
        local = torch.maximum(self.y[:, 1:-2].abs(), self.y[:, 2:-1].abs())
        excess[:, self.x[1:-2].abs() > _BREAK_RANGE] = 0
        orders, cells = (excess > torch.maximum(1e-4 * local, floor)).nonzero(as_tuple=True)
        left, right = self.x[cells + 1], self.x[cells + 2]
        fractions = torch.linspace(0, 1, _PARTS + 1, dtype=torch.float64, device='cpu')
        for _ in range(_ROUNDS):
            if not len(left):
                break
            rows = torch.arange(len(left), device='cpu')
            x = left[:, None] + (right - left)[:, None] * fractions
            y = self.derivatives(x.flatten()).reshape(3, *x.shape)[orders, rows]
            change, part = y.diff(dim=1).abs().nan_to_num(0.).max(dim=1)
            # a smooth function changes less and less
            stays = change > torch.maximum(floor[orders, 0], _LEAST_JUMP * y.abs().amin(dim=1))
            left, right, orders = x[rows, part][stays], x[rows, part + 1][stays], orders[stays]
        brackets: list[_Bracket] = []
        for low, high in sorted(zip(left.tolist(), right.tolist(), strict=True)):
            margin = 4 * _EPS * max(abs(low), abs(high), self.scale)
            if brackets and low - brackets[-1].right <= 1e-9 * max(abs(low), self.scale):
                low = brackets.pop().left + margin  # one place, found by several derivatives or from both sides
            place = self._rounded((low + high) / 2)
            brackets.append(_Bracket(place, low - margin, high + margin, tuple(floor[:, 0].tolist())))
        return brackets

    def _rounded(self, x: float) -> float:
        """Round a place to the precision of the search: 0 and 6, not 1e-26 and 5.9999999999999991."""
        return 0. if abs(x) < 1e-11 * self.scale else float(f'{x:.13g}')

    def _is_break(self, x: float, order: int = 2) -> bool:
        return any(abs(x - spot.x) <= 1e-9 * max(abs(x), self.scale) for spot in self.breaks if spot.order <= order)

    def first_kink(self) -> float | None:
        """Find the kink or jump that is nearest to 0."""
        return min((spot.x for spot in self.breaks if spot.order < 2), key=abs, default=None)

    def smoothness(self) -> str:
        """Classify the differentiability."""
        if self.breaks:
            return ('discontinuous', 'C0', 'C1')[min(spot.order for spot in self.breaks)]
        return 'smooth' if self.known else 'C2+'

    # signs

    def runs(self, order: int) -> list[_Run]:
        """Divide (-inf, inf) into intervals on which f (order 0) or f' (order 1) keeps its sign.

        A function that underflows, as SiLU at -800, keeps its sign there. It counts as 0 on an interval only if there
        is a break at the end of the interval.
        """
        signs = self._signs(order, self.x, self.y)
        cells = signs.diff().nonzero()[:, 0]
        ends = [-math.inf, *self._boundaries(order, cells, signs), math.inf]
        kinds = [int(signs[0]), *(int(sign) for sign in signs[cells + 1])]
        runs = [_Run(*pair) for pair in zip(ends[:-1], ends[1:], kinds, strict=True)]
        if len(runs) > _MOST_RUNS:
            raise ValueError(f'{self.name} has more than {_MOST_RUNS} changes of sign in f or f\'; a function that '
                             'oscillates without end cannot be described.')
        if len(runs) > 1 and not runs[0].sign and not self._is_break(runs[0].right):
            runs[:2] = [runs[1]._replace(left=-math.inf)]
        if len(runs) > 1 and not runs[-1].sign and not self._is_break(runs[-1].left):
            runs[-2:] = [runs[-2]._replace(right=math.inf)]
        for n in range(1, len(runs) - 1):
            left, right, sign = runs[n]
            if not sign and not self._is_break(left) and not self._is_break(right):  # a point, because of rounding
                middle = self._rounded((left + right) / 2)
                runs[n - 1], runs[n], runs[n + 1] = (
                    runs[n - 1]._replace(right=middle), _Run(middle, middle, 0), runs[n + 1]._replace(left=middle))
        return runs

    def _signs(self, order: int, x: Tensor, y: Tensor) -> Tensor:
        """Signs; 0 where a function of others may have no correct digit left."""
        exact = self.known is not None and self.known.slopes is not None
        noise = 0. if exact else 4 * _EPS
        unit = x.abs() * y[1].abs().clamp(min=1) if order == 0 else torch.ones_like(x)
        return torch.where(y[order].abs() <= noise * unit, torch.zeros_like(x), y[order].sign())

    def _boundaries(self, order: int, cells: Tensor, signs: Tensor) -> list[float]:
        """Find the changes of sign inside cells of the grid."""
        left, right, before = self.x[cells], self.x[cells + 1], signs[cells]
        fractions = torch.linspace(0, 1, _PARTS + 1, dtype=torch.float64, device='cpu')
        rows = torch.arange(len(cells), device='cpu')
        for _ in range(_ROUNDS if len(cells) else 0):
            x = left[:, None] + (right - left)[:, None] * fractions
            flat = x.flatten()
            changed = self._signs(order, flat, self.derivatives(flat, 1)).reshape(x.shape) != before[:, None]
            changed[:, 0], changed[:, -1] = False, True
            part = changed.int().argmax(dim=1)
            left, right = x[rows, part - 1], x[rows, part]
        return [self._rounded(x) for x in ((left + right) / 2).tolist()]

    def zeros(self, runs: list[_Run]) -> tuple[tuple[float, ...], tuple[Interval, ...]]:
        """Find the isolated zeros, and the intervals of zeros."""
        zero_on = intervals(runs, 0)
        places = {run.left for run in runs[1:] if not self._is_break(run.left, order=0)}
        if float(self.value(torch.zeros(1, dtype=torch.float64, device='cpu'))) == 0:
            places.add(0.)
        return tuple(sorted(x for x in places if not any(low <= x <= high for low, high in zero_on))), zero_on

    # numbers

    def _slope_limit(self, end: int) -> float:
        """F' at an end of the grid; the last decade shows if it grows, vanishes or oscillates."""
        inward = self.y[1] if end == 0 else self.y[1].flip(0)
        last, middle, inner = (float(inward[n]) for n in (0, _PER_DECADE // 2, _PER_DECADE))
        if abs(last) > 2 * abs(inner) and abs(last) >= abs(middle) >= abs(inner):
            return math.copysign(math.inf, last)
        if 2 * abs(last) < abs(inner) and abs(last) <= abs(middle) <= abs(inner):
            return 0.
        return last if abs(last - inner) <= 1e-3 * max(abs(last), abs(inner)) else math.nan

    def greatest_curvature(self) -> tuple[float, float]:
        """Find the supremum of |f''| away from kinks and its place, the nearest to 0 if there are several."""
        sides = [x for pair in self.sides.values() for x in pair]
        grid, curvature = self.x, self.y[2].abs()
        if sides:
            extra = torch.tensor(sides, dtype=torch.float64, device='cpu')
            grid, order = torch.cat([grid, extra]).sort()
            curvature = torch.cat([curvature, self.derivatives(extra)[2].abs()])[order]
        best = float(curvature.max())
        among = (curvature >= best * (1 - 1e-9)).nonzero()[:, 0]
        at = int(among[grid[among].abs().argmin()])
        if at in (0, len(grid) - 1) and best > 2 * float(curvature[_PER_DECADE if at == 0 else -1 - _PER_DECADE]):
            return math.inf, math.copysign(math.inf, float(grid[at]))
        place = float(grid[at])
        low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)])

        def bend(x: float) -> float:
            point = torch.tensor([x], dtype=torch.float64, device='cpu')
            return -float(self.derivatives(point)[2].abs().nan_to_num(0.))

        if high - low > 1e-9 * self.scale:  # else it is at 0, next to which the grid is fine enough
            from scipy.optimize import minimize_scalar  # imported here because it takes longer than this package
            found = minimize_scalar(bend, bounds=(low, high), method='bounded', options={'xatol': 1e-9 * (high - low)})
            if -float(found.fun) > best * (1 + 1e-14):
                best, place = -float(found.fun), float(found.x)
        at_break = next((spot for spot, pair in self.sides.items() if place in pair), None)
        return best, self._rounded(place) if at_break is None else at_break

    def extent_on_negative(self, falling: list[_Run]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Find infimum and supremum of f on x < 0 with their places, the nearest to 0 if there are several."""
        inner = {run.left for run in falling[1:] if run.left < 0} | {spot.x for spot in self.breaks if spot.x < 0}
        pairs = [(x, side) for x in inner for side in self.sides.get(x, (x,))]
        pairs.append((0., self.sides[0.][0] if self._is_break(0., order=0) else 0.))
        values = self.value(torch.tensor([side for _, side in pairs], dtype=torch.float64, device='cpu')).tolist()
        candidates = [(value + 0., x) for value, (x, _) in zip(values, pairs, strict=True)]
        candidates.append((self._limit_left(), -math.inf))
        candidates.sort(key=lambda candidate: abs(candidate[1]))
        return min(candidates, key=lambda c: c[0]), max(candidates, key=lambda c: c[0])

    def _limit_left(self) -> float:
        last, inner = float(self.y[0, 0]), float(self.y[0, _PER_DECADE])
        if self.slopes[0] and not math.isnan(self.slopes[0]):
            return -math.copysign(math.inf, self.slopes[0])
        return last + 0. if abs(last - inner) <= 1e-3 * max(abs(last), 1.) else math.copysign(math.inf, last)

    def mean_on_negative(self, length: float) -> float:
        """Compute the mean of f over [-length, 0] by Gauss's rule on cells that shrink towards 0 and end at breaks."""
        import numpy as np
        nodes, weights = np.polynomial.legendre.leggauss(10)
        inner = [spot.x for spot in self.breaks if -length < spot.x < 0]
        edges = torch.tensor(sorted({-length, 0., *inner, *(-length * 2.**-n for n in range(1, 45))}))
        edges = edges.to('cpu', torch.float64)
        half, centre = edges.diff() / 2, (edges[1:] + edges[:-1]) / 2
        x = centre[:, None] + half[:, None] * torch.from_numpy(nodes)
        values = self.value(x.flatten()).reshape(x.shape)
        return float((half * (values @ torch.from_numpy(weights))).sum() / length) + 0.
