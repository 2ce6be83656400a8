"""The launch of compiled kernels, with a driver that notes launches instead of a GPU."""
import runpy
from collections import defaultdict

import pytest
import torch
from torch.torch_version import TorchVersion

triton = pytest.importorskip('triton')
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

from timm_paf.kernels import gpu  # noqa: E402

pytestmark = pytest.mark.skipif(
    TorchVersion(triton.__version__) < '3.4', reason='compiled kernels take other arguments')


ALPHA, BETA, X, LARGER = torch.tensor([1.3]), torch.tensor([0.2]), torch.randn(2, 8, 4, 4), torch.randn(32, 16, 16, 16)


class Driver:
    """Triton's driver of an H100 that launches nothing."""

    def __init__(self):
        self.launches, self.utils, self.launcher_cls = [], self, lambda source, metadata: self.launch
        self.searches = 0

    def launch(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
        given = {id(ALPHA): 'alpha', id(BETA): 'beta', id(X): 'x', id(LARGER): 'larger'}
        self.launches.append((x, y, z, *(
            given.get(id(a), ('result', a.shape)) if isinstance(a, torch.Tensor) else a for a in arguments)))

    def load_binary(self, *_):
        return None, 2, 32, 0, 1024  # no module: nothing to unload

    def get_device_properties(self, device):
        return {'max_shared_mem': 232448}

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget('cuda', 90, 32)


@pytest.fixture
def recorded(monkeypatch):
    """A driver, and kernels that no other test has compiled."""
    found = Driver()
    monkeypatch.setattr(gpu, '_compiled', {})
    for kernel in (gpu._value_kernel, gpu._gradient_kernel, gpu._sum_kernel):
        monkeypatch.setattr(kernel, 'device_caches', defaultdict(kernel.create_binder))

        def counted(*args, run=kernel.run, **kwargs):
            found.searches += 1
            return run(*args, **kwargs)

        monkeypatch.setattr(kernel, 'run', counted)
    monkeypatch.setattr(driver, '_active', found)
    return found


CALLS = {
    'value': lambda x: (gpu.value('pssilu', x, ALPHA, BETA, 1),),
    'gradient of x': lambda x: gpu.gradients('pssilu', x, x, ALPHA, BETA, 1, False),
    'gradients': lambda x: gpu.gradients('pssilu', x, x, ALPHA, BETA, 1, True),
}


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
def test_later_calls_launch_the_compiled_kernel_with_the_same_arguments(call, recorded, monkeypatch):
    call(X)
    kernels = recorded.searches
    call(X), call(LARGER)
    assert recorded.searches == kernels == len(recorded.launches) // 3
    direct = recorded.launches[kernels:]
    recorded.launches = []
    monkeypatch.setattr(gpu, '_DIRECT', False)
    gpu._compiled.clear()
    call(X), call(LARGER)
    assert recorded.searches == 3 * kernels and recorded.launches == direct
    assert direct[kernels][0] == LARGER.numel() // gpu._BLOCK  # programs


@pytest.mark.parametrize('version, direct', [('3.3.1', False), ('3.4.0', True), ('3.10.0', True)])
def test_versions_of_triton_are_compared_by_number(version, direct, monkeypatch):
    monkeypatch.setattr(triton, '__version__', version)
    assert runpy.run_path(gpu.__file__)['_DIRECT'] is direct


@pytest.mark.parametrize('first, other', [
    (torch.ones(32), torch.ones(33)), (torch.ones(32), torch.ones(33)[1:]), (torch.ones(32), torch.ones(32).half()),
], ids=['size', 'alignment', 'dtype'])
def test_other_tensors_get_their_own_kernel(first, other, recorded):
    CALLS['value'](first)
    CALLS['value'](other)
    assert recorded.searches == 2
