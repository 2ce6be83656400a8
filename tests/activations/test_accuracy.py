"""Errors of the activations against the bounds that docs/tables/accuracy.md states."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.activations import accuracy
from tests.activations.test_functional import exact, exact_partial

pytestmark = pytest.mark.usefixtures('reference')  # tests/kernels has the fused functions
INF = math.inf
NAMES = list(accuracy.FORMULAS)
CASES = [
    pytest.param(name, p, id=f'{name}-{",".join(map(str, p))}')
    for name, (_, choices) in accuracy.FORMULAS.items() for p in choices]
PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'tables' / 'accuracy.md'


def assert_within_bounds(name, parameters, x):
    """Check the errors against the bounds, and return the largest error of each quantity."""
    errors, largest = accuracy.measure(name, x, parameters), {}
    for quantity, bound in accuracy.stated(name, x.dtype).items():
        worst = int(errors.ulps[quantity].argmax())
        largest[quantity] = float(errors.ulps[quantity][worst])
        assert largest[quantity] <= bound, (name, parameters, quantity, errors.x[worst])
    return largest


@pytest.mark.parametrize('name, parameters', CASES)
def test_the_reference_is_the_formula_of_the_paper(name, parameters):
    """The reference of the measure, in extended precision, against arbitrary precision."""
    points = [-700., -90., -1.2784645, -1e-3, 0.7, 12., 700.]
    for x in points:
        value, *partials = accuracy.reference(name, np.array([x]), parameters)
        assert float(value[0]) == pytest.approx(float(exact(name, x, parameters)), rel=1e-13, abs=1e-300)
        for index, partial in enumerate(partials):
            if index and parameters[index - 1] == 0 and name != 'reblu':
                continue  # |p| has no derivative there
            expected = float(exact_partial(name, x, parameters, index))
            assert float(partial[0]) == pytest.approx(expected, rel=1e-9, abs=1e-16), (x, index)


@pytest.mark.parametrize('per_binade', [2, pytest.param(16, marks=pytest.mark.slow)], ids=['few', 'all'])
@pytest.mark.parametrize('dtype', accuracy.DTYPES)
@pytest.mark.parametrize('name', NAMES)
def test_errors_stay_within_what_is_stated(name, dtype, per_binade):
    if dtype == 'float64' and np.finfo(np.longdouble).nmant < 63:
        pytest.skip('no floating-point type of numpy is finer than float64 here')
    found = [
        assert_within_bounds(name, p, accuracy.grid(name, p, accuracy.DTYPES[dtype], per_binade=per_binade))
        for p in accuracy.FORMULAS[name][1]]
    worst = {quantity: max(each[quantity] for each in found) for quantity in found[0]}
    cells = [f'{worst[q]:.3g}' if q in worst else '' for q in accuracy.QUANTITIES]
    print(f'\n| `{name}` | {dtype} | {" | ".join(cells)} |')  # for docs/tables/accuracy.md: pytest -s -m slow


def signed(least, greatest):
    """Numbers of float32 whose size lies in a range."""
    sizes = st.floats(np.float32(least).item(), np.float32(greatest).item(), width=32)
    return st.tuples(sizes, st.sampled_from([1, -1])).map(math.prod)


# the documented range where it is bounded, as far as float32 has digits left to compare with; else numbers of a network
ALPHA = {'psilu': (0., 1e4), 'pssilu': (0., 1e4), 'pssilu_fixed': (0., 1e4), 'psoftplus': (1.001e-3, 1e4)}
BETA = (0., 0.99)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize('name', NAMES)
def test_any_parameters_and_inputs_stay_within_what_is_stated(name, dtype):
    alpha = ALPHA.get(name, (0., 10.))
    parameters = st.tuples(*(signed(*(BETA if q == 'd/dβ' else alpha)) for q in accuracy.quantities(name)[2:]))
    inputs = st.lists(st.floats(-accuracy.LIMIT, accuracy.LIMIT, width=32), min_size=1, max_size=20)

    @settings(max_examples=15, deadline=None, derandomize=True, database=None)
    @given(parameters, inputs)
    def check(parameters, x):
        x = torch.tensor(x).to(dtype)
        assert_within_bounds(name, parameters, x[x.abs() <= accuracy.LIMIT])
    check()


@pytest.mark.parametrize('name, parameters', CASES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
def test_results_at_infinity_are_limits(name, parameters, dtype):
    """A limit is what the formula gives far out: finite there and approached, or growing without bound."""
    x = torch.tensor([INF, -INF], dtype=dtype)
    value, dx, *partials = accuracy.computed(name, x, parameters)
    far = [accuracy.reference(name, np.array([size, -size]), parameters) for size in (1e30, 1e33)]
    for ours, near, farther in zip((value, dx, *partials), *far, strict=True):
        assert not ours.isnan().any()
        for got, first, second in zip(ours.tolist(), near, farther, strict=True):
            if abs(second) > 100 * abs(first) and abs(second) > 1e10:
                assert abs(got) > 1e30 and math.copysign(1, got) == np.sign(second)
            elif (name, parameters) == ('reblu', (-1.,)) and got == 0:
                pass  # x - sqrt(x^2+1) + 1: the 1 is lost for x above 1e8
            else:
                assert got == pytest.approx(float(second), rel=2.**-8, abs=1e-6)


@pytest.mark.parametrize('layout, dtype', [
    ('contiguous', torch.float32), ('channels_last', torch.bfloat16), ('sliced', torch.float16)], ids=str)
def test_gradients_of_a_million_elements_are_summed_in_float32(dtype, layout):
    assert accuracy.sum_error(dtype, accuracy.LAYOUTS[layout], n=2**20) <= accuracy.STATED_SUM


def test_the_documentation_states_these_bounds():
    text = PAGE.read_text()
    for name in NAMES:
        for label, dtype in accuracy.DTYPES.items():
            (row,) = [line for line in text.splitlines() if line.startswith(f'| `{name}` | {label} |')]
            bounds = accuracy.stated(name, dtype)
            expected = [f'≤ {bounds[q]:g}' if q in bounds else '' for q in accuracy.QUANTITIES]
            cells = [cell.strip() for cell in row.strip('|').split('|')[2:]]
            assert [cell.partition('(')[2].rstrip(')') for cell in cells] == expected
            measured = [float(cell.split()[0]) for cell in cells if cell]
            assert all(m <= bounds[q] for m, q in zip(measured, bounds, strict=True))
