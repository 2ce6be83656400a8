import os
import shutil

os.environ.setdefault('GOMP_SPINCOUNT', '1000')  # before torch: waiting threads are costly on a busy machine

import pyautoattack
import pytest
import torch

from timm_paf import kernels
from timm_paf.kernels import cpu


def pytest_configure(config):
    """Where there is no compiler at all, the warning about it is no news; one that fails is."""
    if 'there is no C++ compiler' in (cpu.available('pssilu', torch.float32) or ''):
        config.addinivalue_line('filterwarnings', 'ignore:activations are computed by the slower reference')


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    # the tensors here are too small to share, and waiting threads are costly on a busy machine
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def shorten_autoattack(monkeypatch):
    """A function that takes a change of pyautoattack's AutoAttack, which then holds for each new one."""
    build = pyautoattack.AutoAttack.__init__

    def shorten(change):
        def shortened(self, *args, **kwargs):
            build(self, *args, **kwargs)
            change(self)
        monkeypatch.setattr(pyautoattack.AutoAttack, '__init__', shortened)
    return shorten


@pytest.fixture
def reference():
    """Activations as graphs and scripts hold them, for comparisons digit for digit."""
    with kernels.use('reference'):
        yield


def pytest_runtest_setup(item):
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('needs a GPU')


@pytest.fixture(scope='session')
def browser():
    """A headless Chromium that playwright drives; tests skip where either is missing."""
    api = pytest.importorskip('playwright.sync_api', reason='needs playwright from PyPI')
    programs = [found for name in ('chromium', 'chromium-browser', 'google-chrome') if (found := shutil.which(name))]
    if not programs:
        pytest.skip('needs Chromium')
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=programs[0], args=['--no-sandbox'])
        yield browser
        browser.close()
