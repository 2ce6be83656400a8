"""Which implementation runs where."""
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

import timm_paf
from timm_paf import kernels
from timm_paf.activations import functional
from timm_paf.kernels import choice, cpu

PARAMETERS = (torch.tensor([1.3]), torch.tensor([0.2]))


def pssilu(x):
    return functional.pssilu(x, *PARAMETERS)


def is_fused(function):
    """Whether a compiled function runs."""
    with mock.patch.object(cpu, '_run', wraps=cpu._run) as run:
        function()
    return run.called


def slope_of_alpha():
    alpha = PARAMETERS[0].clone().requires_grad_()
    return torch.autograd.grad(functional.pssilu(X, alpha, PARAMETERS[1]).sum(), alpha)


class Subclass(torch.Tensor):
    pass


class Passing(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def under_mode(mode, function):
    with mode:
        return function()


X = torch.randn(3, 4)


@pytest.mark.parametrize('function, fused', [
    (lambda: pssilu(X), True),
    (lambda: under_mode(torch.no_grad(), lambda: pssilu(X)), True),
    (lambda: under_mode(Passing(), lambda: pssilu(X)), True),
    (lambda: pssilu(torch.nn.Parameter(X)), True),
    (lambda: timm_paf.activations.PSSiLU()(X), True),
    (lambda: under_mode(kernels.use('reference'), lambda: pssilu(X)), False),
    (lambda: pssilu(X.as_subclass(Subclass)), False),
    (lambda: pssilu(X.to('meta')), False),
    (lambda: pssilu(torch.view_as_complex(torch.stack([X, X], -1)).conj().imag), False),
    (lambda: pssilu(torch._efficientzerotensor((3, 4))), False),
    (lambda: under_mode(torch.device('meta'), slope_of_alpha), True),
    (lambda: torch.func.vmap(pssilu)(X), False),
    (lambda: torch.func.grad(lambda x: pssilu(x).sum())(X), False),
    (lambda: torch.func.jvp(pssilu, (X,), (X,)), False),
    (lambda: make_fx(pssilu)(X), False),
    (lambda: torch.jit.trace(pssilu, X, check_trace=False), False),
    (lambda: torch.compile(pssilu, backend='aot_eager', fullgraph=True)(X), False),
], ids=['eager', 'no-grad', 'function-mode', 'parameter', 'module', 'asked', 'subclass', 'meta', 'negative-bit',
        'zeros-without-memory', 'device-mode', 'vmap', 'func-grad', 'jvp', 'make_fx', 'jit-trace', 'compile'])
def test_where_the_fused_functions_run(function, fused):
    torch._dynamo.reset()
    with kernels.use('fused'):
        assert is_fused(function) == fused


def test_fake_tensors_stay_fake():
    with kernels.use('fused'), FakeTensorMode():
        y = functional.pssilu(torch.randn(2, 3, requires_grad=True), 1.3, 0.2)
        y.sum().backward()
    assert type(y).__name__ == 'FakeTensor'


def test_a_differentiated_gradient_is_made_of_torchs_operations():
    x = torch.randn(4, requires_grad=True)
    with kernels.use('fused'):
        total = pssilu(x).sum()
        assert not is_fused(lambda: torch.autograd.grad(total, x, create_graph=True))
        assert is_fused(lambda: torch.autograd.grad(total, x))


def test_use_holds_until_changed_or_to_the_end_of_a_block():
    before = choice._mode
    with kernels.use('reference'):
        with pytest.raises(RuntimeError, match='inner'), kernels.use('fused'):
            raise RuntimeError('inner')
        assert choice._mode == 'reference'
        kernels.use('auto')
        assert choice._mode == 'auto'
    with pytest.raises(ValueError, match='fast'):
        kernels.use('fast')
    assert choice._mode == before


SCRIPT = '''
import warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import timm_paf
    x = torch.linspace(-3, 3, 7, requires_grad=True)
    for name in ('psilu', 'psoftplus', 'psilu'):
        y = getattr(timm_paf.functional, name)(x, 1.)
        y.sum().backward()
    torch.testing.assert_close(y, torch.nn.functional.silu(x))
    print([str(w.message) for w in caught if w.category is RuntimeWarning])
try:
    timm_paf.kernels.use('fused')
    timm_paf.functional.psilu(x, 1.)
except RuntimeError as error:
    print(error)
'''


def run(script, **environment):
    process = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, env={**os.environ, **environment})
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


@pytest.mark.parametrize('mode, compiler, reason', [
    ('auto', 'false', 'false failed (exit status 1)'), ('reference', '/no/such/compiler', 'compiler does not run')])
def test_without_a_compiler_there_is_the_reference_and_one_warning_unless_asked_for(mode, compiler, reason, tmp_path):
    warned, error = run(SCRIPT, CXX=compiler, TIMM_PAF_CACHE=str(tmp_path), TIMM_PAF_KERNELS=mode)
    assert warned.count(reason) == (mode == 'auto')
    assert error.startswith('psilu:') and reason in error
