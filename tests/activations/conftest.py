import pytest

from timm_paf import kernels


@pytest.fixture
def reference():
    """Use the formulas instead of fused kernels."""
    with kernels.use('reference'):
        yield
