import pytest
import torch


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    # the tensors here are too small to share, and waiting threads are costly on a busy machine
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
