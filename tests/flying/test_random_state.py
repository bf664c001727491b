"""What merged processes share besides the model."""

import torch
import torch.distributed as dist

from hf_infeco.flying.groups import Group
from hf_infeco.flying.switcher import share_random_state


def test_the_random_state_that_is_shared_is_that_of_the_models_own_device(monkeypatch):
    asked, device = [], torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: (asked.append(device), torch.get_rng_state())[1])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: asked.append(device))
    monkeypatch.setattr(dist, "broadcast", lambda *_, **__: None)
    share_random_state(Group((0, 1), None, None, None, None), device)
    assert asked == [device, device]
