"""Who sees whom, as a mask to be added to attention scores."""

import torch
from torch import Tensor


def positions_of(is_real: Tensor) -> Tensor:
    """Positions counted from each row's first real token, int64 `[B, T]`, of a mask `[B, T]`; 0 in the padding."""
    return (is_real.long().cumsum(1) - 1).clamp(min=0)


def additive_mask(is_real: Tensor, block_length: int | None, dtype: torch.dtype) -> Tensor:
    """
    `[B, 1, T, T]`: 0 where the query of a row may see the key of a column, else the least number of `dtype`.

    Args:
        is_real (bool, `[B, T]`): false for padding, which nobody sees.
        block_length (`int`, *optional*): a token sees no later block; without it every token sees every other.
    """
    sees = is_real[:, None, :].expand(-1, is_real.shape[1], -1)
    if block_length is not None:
        blocks = positions_of(is_real) // block_length
        sees = sees & (blocks[:, None, :] <= blocks[:, :, None])
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]
