import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """The reference is many small operations: on a busy machine several threads wait for each other at every one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
