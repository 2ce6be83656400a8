import pytest

from timm_paf import kernels


@pytest.fixture
def reference():
    """The formulas themselves, where other implementations would stand in for them."""
    with kernels.use('reference'):
        yield
