import numpy as np
import pytest
import torch

from timm_paf._dtypes import compute_dtype
from timm_paf._random import GOLDEN, splitmix64, to_int64

# the first outputs of the authors' generator, splitmix64.c, for the states 0 and 1234567
OUTPUTS = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F],
    1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423],
}


@pytest.mark.parametrize('state', OUTPUTS)
def test_published_outputs(state):
    inputs = [(state + i * GOLDEN) % 2**64 for i in (1, 2, 3)]
    assert [splitmix64(z) for z in inputs] == OUTPUTS[state]
    assert splitmix64(np.array(inputs, dtype=np.uint64)).tolist() == OUTPUTS[state]
    tensor = splitmix64(torch.tensor([to_int64(z) for z in inputs]))
    assert tensor.dtype == torch.int64 and tensor.tolist() == [to_int64(z) for z in OUTPUTS[state]]


@pytest.mark.parametrize('number, expected', [
    (0, 0), (2**63 - 1, 2**63 - 1), (2**63, -2**63), (-1, -1), (2**64 + 5, 5)])
def test_to_int64(number, expected):
    assert to_int64(number) == expected


def test_compute_dtype():
    wide = {dtype: compute_dtype(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    assert {dtype for dtype, to in wide.items() if to == torch.float64} == {torch.float64}
    assert set(wide.values()) == {torch.float32, torch.float64}
