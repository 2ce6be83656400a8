"""Properties of the graph of a function: breaks, changes of sign, curvature, limits.

Derivatives are those of autograd in float64, on a grid that is geometric around 0, so that sharpness 1e4 and 1e-3 have
the same resolution. Kinks and limits of slopes are those of the closed form where it is known, and are searched
otherwise. A zero is exact to about 1e-12 relative, a greatest curvature too (its place to 1e-6).
"""
import dataclasses
import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from timm_paf.activations.elementwise import ClosedForm, Elementwise

__all__ = ['Break', 'Curve', 'Interval', 'intervals']

Array = NDArray[np.float64]
Interval = tuple[float, float]

_EPS = 2.**-52
_PER_DECADE = 48  # points of the grid
_BREAK_RANGE = 1e3  # limit of |x| in the search for breaks
_LEAST_JUMP = 1e-6  # in that search, relative to the function: torch's softplus jumps by 2e-9 where it becomes linear
_PARTS, _ROUNDS = 256, 6  # divisions of a cell in that search: 48 bits, down to neighbouring floats
_MOST_RUNS = 64  # intervals of one sign


@dataclasses.dataclass(frozen=True)
class Break:
    """A jump at x, right minus left: of the value (order 0), the slope (1, a kink) or only the second derivative."""
    x: float
    order: int
    jump: float


class _Run(NamedTuple):
    """An interval on which a derivative has one sign."""
    left: float
    right: float
    sign: int


def intervals(runs: Iterable[_Run], sign: int, end: float = math.inf) -> tuple[Interval, ...]:
    """Select the runs of one sign up to `end`."""
    return tuple((run.left, min(run.right, end)) for run in runs if run.sign == sign and run.left < min(run.right, end))


class Curve:
    """f, f' and f'' of one activation on a grid, its breaks, and searches between the points of the grid.

    The grid excludes 0, because at a kink autograd returns any value between those of the two sides.
    """

    def __init__(self, activation: Elementwise) -> None:
        self.name, self.function = activation.name, activation.function
        known = activation.known or ClosedForm()
        self.scale = known.scale
        positive = self.scale * np.logspace(-12, 9, 21 * _PER_DECADE + 1)
        x = np.concatenate([-positive[::-1], positive])
        self._check(x)
        y = self.derivatives(x)
        finite = np.isfinite(y).all(axis=0)
        self.x, self.y = x[finite], y[:, finite]
        self.noise = 0. if known.slopes else 8 * _EPS  # of a sign: the functions of others may lose digits
        self.sides: dict[float, tuple[float, float]] = {}  # place of a break -> points on both of its sides
        self.breaks = tuple(self._breaks(activation.known))
        if self.sides:
            x = np.append(self.x, list(self.sides.values()))
            self.x, self.y = np.sort(x), np.hstack([self.y, self.derivatives(x[len(self.x):])])[:, x.argsort()]
        left, right = known.slopes or (_slope_limit(self.y[1]), _slope_limit(self.y[1, ::-1]))
        self.slopes = (left + 0., right + 0.)  # no -0

    def value(self, x: ArrayLike) -> Array:
        with torch.no_grad():
            return self.function(_tensor(x)).numpy()

    def derivatives(self, x: ArrayLike, order: int = 2) -> Array:
        """Compute f, f' and, for order 2, f'' at x of shape (N,), as an array of shape (order + 1, N)."""
        point = _tensor(x).requires_grad_()
        results = [self.function(point.clone())]  # of a copy, since the activation may work in place
        if not results[0].requires_grad:
            raise ValueError(f'{self.name} cannot be differentiated: its output does not depend on x through autograd.')
        try:
            for _ in range(order):  # with a term 0 x, since the slope of a line does not depend on x
                results += torch.autograd.grad((results[-1] + 0 * point).sum(), point, create_graph=True)
        except RuntimeError as error:
            raise ValueError(f'{self.name} has no second derivative: {error}.') from error
        return torch.stack(results).detach().numpy()

    def _check(self, x: Array) -> None:
        with torch.no_grad():
            y = self.function(_tensor(x))
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != torch.float64:
            what = f'{y.dtype} {tuple(y.shape)}' if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f'{self.name} gave {what} for float64 {x.shape}; expected the same of both.')
        if not np.allclose(self.value(x[::7]), y[::7], rtol=1e-9, atol=1e-12, equal_nan=True):
            raise ValueError(f'{self.name} is not elementwise: an output depends on other inputs.')
        for at in np.flatnonzero((abs(x) <= 8) & ~np.isfinite(y.numpy())):
            raise ValueError(f'{self.name} is {float(y[at])} at x = {x[at]:.6g}; expected a function that is finite on '
                             '[-8, 8].')

    def _breaks(self, known: ClosedForm | None) -> Iterator[Break]:
        """Find the jumps of f, f' and f'' at the places of the closed form, or everywhere."""
        floor = _LEAST_JUMP * abs(self.y[:, abs(self.x) <= 10]).max(axis=1, initial=0.)
        for low, high in self._suspects(floor) if known is None else [(x, x) for x in known.breaks]:
            place, margin = self._rounded((low + high) / 2), 4 * _EPS * max(abs(low), abs(high), self.scale)
            y = self.derivatives([low - margin, high + margin])
            # a learned number that differs by 1e-9 from the one without a kink makes a kink
            least = floor if known is None else 1e-12 * abs(y).max(axis=1)[::-1].cumsum()[::-1]
            jumps = y[:, 1] - y[:, 0]
            for order in np.flatnonzero(abs(jumps) > least)[:1]:
                self.sides[place] = (low - margin, high + margin)
                yield Break(place, int(order), float(jumps[order]))

    def _suspects(self, floor: Array) -> list[list[float]]:
        """Search cells of the grid in which f, f' or f'' changes unlike in its neighbours, and narrow them down."""
        steps, size = np.diff(self.y), abs(self.y)
        excess = abs(steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2)
        excess[:, abs(self.x[1:-2]) > _BREAK_RANGE] = 0
        local = 1e-4 * np.maximum(size[:, 1:-2], size[:, 2:-1])
        orders, cells = np.nonzero(excess > np.maximum(local, floor[:, None]))
        left, right = self.x[cells + 1], self.x[cells + 2]
        for _ in range(_ROUNDS if len(cells) else 0):
            rows, x = np.arange(len(left)), np.linspace(left, right, _PARTS + 1, axis=1)
            y = self.derivatives(x.ravel()).reshape(3, *x.shape)[orders, rows]
            change = np.nan_to_num(abs(np.diff(y)))
            part = change.argmax(axis=1)
            # a smooth function changes less and less
            stays = change[rows, part] > np.maximum(floor[orders], _LEAST_JUMP * abs(y).min(axis=1))
            left, right, orders = x[rows, part][stays], x[rows, part + 1][stays], orders[stays]
        found: list[list[float]] = []
        for low, high in sorted(zip(left.tolist(), right.tolist(), strict=True)):
            if found and low - found[-1][1] <= 1e-9 * max(abs(low), self.scale):
                found[-1][1] = high  # one place, found by several derivatives or from both sides
            else:
                found.append([low, high])
        return found

    def _rounded(self, x: float) -> float:
        """Round a place to the precision of the search: 0 and 6, not 1e-26 and 5.9999999999999991."""
        return 0. if abs(x) < 1e-11 * self.scale else float(f'{x:.13g}')

    def runs(self, order: int) -> list[_Run]:
        """Divide (-inf, inf) into intervals on which f (order 0) or f' (order 1) keeps its sign.

        A function that underflows, as SiLU at -800, keeps its sign there. It counts as 0 on an interval only if there
        is a break at the end of the interval.
        """
        import scipy.optimize  # here because it takes longer than this package
        unit = abs(self.x) * np.maximum(abs(self.y[1]), 1) if order == 0 else 1.
        signs = np.where(abs(self.y[order]) <= self.noise * unit, 0., np.sign(self.y[order]))
        groups = np.split(np.arange(len(signs)), np.flatnonzero(np.diff(signs)) + 1)
        if len(groups) > _MOST_RUNS:
            raise ValueError(f'{self.name} has more than {_MOST_RUNS} changes of sign in f or f\'; a function that '
                             'oscillates without end cannot be described.')
        wide = np.pad(self.x, 1, 'edge')  # wide[i] and wide[j + 2] are the neighbours of the points i to j
        kept = [group for group in groups if signs[group[0]] or len(groups) == 1 or any(
            wide[group[0]] <= spot.x <= wide[group[-1] + 2] for spot in self.breaks)]
        runs = [_Run(-math.inf, math.inf, int(signs[kept[0][0]]))]
        for before, after in pairwise(kept):
            left, right, sign = self.x[before[-1]], self.x[after[0]], int(signs[after[0]])
            if sign == runs[-1].sign:
                continue
            if sign and runs[-1].sign:
                place = self._rounded(scipy.optimize.brentq(
                    lambda x: self.derivatives([x], 1)[order, 0], left, right, xtol=1e-24 * self.scale, rtol=4 * _EPS))
            else:
                place = min(self.sides, key=lambda x: abs(x - left))
            runs[-1:] = [runs[-1]._replace(right=place), _Run(place, math.inf, sign)]
        return runs

    def zeros(self, runs: list[_Run]) -> tuple[tuple[float, ...], tuple[Interval, ...]]:
        """Find the isolated zeros, and the intervals of zeros."""
        zero_on, jumps = intervals(runs, 0), [spot.x for spot in self.breaks if spot.order == 0]
        places = {run.left for run in runs[1:] if not np.isclose(run.left, jumps, 1e-9, 1e-9 * self.scale).any()}
        places |= {0.} if self.value([0.])[0] == 0 else set()
        return tuple(sorted(x for x in places if not any(low <= x <= high for low, high in zero_on))), zero_on

    def greatest_curvature(self) -> tuple[float, float]:
        """Find the supremum of |f''| away from kinks and its place, the nearest to 0 if there are several."""
        import scipy.optimize
        x, curvature = self.x, abs(self.y[2])
        best = float(curvature.max())
        among = np.flatnonzero(curvature >= best * (1 - 1e-9))
        at = int(among[abs(x[among]).argmin()])
        if at in (0, len(x) - 1) and best > 2 * curvature[_PER_DECADE if at == 0 else -1 - _PER_DECADE]:
            return math.inf, math.copysign(math.inf, x[at])
        place, low, high = float(x[at]), x[max(at - 1, 0)], x[min(at + 1, len(x) - 1)]
        if high - low > 1e-9 * self.scale:  # else it is at 0, next to which the grid is fine enough
            found = scipy.optimize.minimize_scalar(
                lambda x: -np.nan_to_num(abs(self.derivatives([x])[2, 0])), bounds=(low, high), method='bounded',
                options={'xatol': 1e-9 * (high - low)})
            if -found.fun > best * (1 + 1e-14):
                best, place = float(-found.fun), float(found.x)
        return best, next((spot for spot, pair in self.sides.items() if place in pair), self._rounded(place))

    def extent_on_negative(self, extrema: Iterable[float]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Find infimum and supremum of f on x < 0 with their places, the nearest to 0 if there are several."""
        points = [(x, side) for x in {*extrema, *self.sides} if x < 0 for side in self.sides.get(x, (x,))]
        jumps_at_0 = any(spot.x == 0 and spot.order == 0 for spot in self.breaks)
        points.append((0., self.sides[0.][0] if jumps_at_0 else 0.))
        last, inner, slope = float(self.y[0, 0]), float(self.y[0, _PER_DECADE]), self.slopes[0]
        limit = last + 0. if abs(last - inner) <= 1e-3 * max(abs(last), 1.) else math.copysign(math.inf, last)
        limit = limit if slope == 0 or math.isnan(slope) else -math.copysign(math.inf, slope)
        values = [limit, *(self.value([side for _, side in points]) + 0.).tolist()]
        found = sorted(zip(values, [-math.inf, *(x for x, _ in points)], strict=True), key=lambda pair: abs(pair[1]))
        return min(found, key=lambda pair: pair[0]), max(found, key=lambda pair: pair[0])

    def mean_on_negative(self, length: float) -> float:
        """Compute the mean of f over [-length, 0] by Gauss's rule on cells that shrink towards 0 and end at breaks."""
        nodes, weights = np.polynomial.legendre.leggauss(10)
        inner = [spot.x for spot in self.breaks if -length < spot.x < 0]
        edges = np.unique([-length, 0., *inner, *(-length * 2.**-n for n in range(1, 45))])
        half = np.diff(edges) / 2
        x = (edges[1:] + edges[:-1])[:, None] / 2 + half[:, None] * nodes
        return float((half * (self.value(x.ravel()).reshape(x.shape) @ weights)).sum() / length) + 0.


def _tensor(x: ArrayLike) -> Tensor:
    return torch.tensor(np.asarray(x), dtype=torch.float64, device='cpu')


def _slope_limit(slopes: Array) -> float:
    """Limit of f' at the end that comes first; the last decade shows if it grows, vanishes or oscillates."""
    last, middle, inner = (float(slopes[n]) for n in (0, _PER_DECADE // 2, _PER_DECADE))
    if abs(last) > 2 * abs(inner) and abs(last) >= abs(middle) >= abs(inner):
        return math.copysign(math.inf, last)
    if 2 * abs(last) < abs(inner) and abs(last) <= abs(middle) <= abs(inner):
        return 0.
    return last if abs(last - inner) <= 1e-3 * max(abs(last), abs(inner)) else math.nan
