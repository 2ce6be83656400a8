import pytest
import torch


@pytest.fixture(autouse=True, scope='session')
def two_threads():
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
