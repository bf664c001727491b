"""The answer while it is being filled in: which positions are decided, and which block each row is in."""

import torch
from torch import Tensor

from .config import RemixConfig
from .masks import positions_of


class Canvas:
    """
    Prompts, padded on the left, and behind them an answer of masks.

    Attributes:
        ids (int64, `[B, T]`): tokens, `T` is prompt and answer.
        is_real (bool, `[B, T]`): false for padding.
        positions (int64, `[B, T]`): counted from each row's first real token.
        is_open (bool, `[B, G]`): positions of the answer that are not decided.
        block (int64, `[B, G]`): the block that a position of the answer belongs to.
        origin (int64, `[B, 1]`): the column that a row's blocks count from.

    Blocks of a block-causal model count from the row's first real token, so the first may begin inside the prompt;
    others count from the answer's first position.
    """

    def __init__(
        self,
        prompts: Tensor,
        attention_mask: Tensor | None,
        mask_token_id: int,
        config: RemixConfig,
        is_block_causal: bool = False,
    ) -> None:
        is_real = check_left_padding(prompts, attention_mask)
        rows, self.prompt_length = prompts.shape
        answer = prompts.new_full((rows, config.max_new_tokens), mask_token_id)
        self.ids = torch.cat([prompts, answer], dim=1)
        self.is_open = torch.ones_like(answer, dtype=torch.bool)
        self.is_real = torch.cat([is_real, self.is_open], dim=1)
        self.positions = positions_of(self.is_real)
        self.block_length, length = config.block_length, self.ids.shape[1]
        padding = (~is_real).sum(1, keepdim=True)
        self.origin = padding if is_block_causal else torch.full_like(padding, self.prompt_length)
        columns = torch.arange(self.prompt_length, length, device=answer.device)
        self.block = (columns - self.origin) // self.block_length
        self.past_last = int(self.block.max()) + 1

    @property
    def answer(self) -> Tensor:
        return self.ids[:, self.prompt_length :]

    def current(self, together: bool) -> Tensor:
        """
        Each row's first block that has open positions, int64 `[B, 1]`; past the last one where none has.

        Args:
            together: no row goes ahead of the others.
        """
        current = self.block.masked_fill(~self.is_open, self.past_last).amin(1, keepdim=True)
        return current.amin().expand_as(current) if together else current

    def columns(self, together: bool) -> tuple[int, int]:
        """The first column of all current blocks, and the end of the last one."""
        current = self.current(together)
        is_unfinished = current < self.past_last
        begin = self.origin + current * self.block_length
        end = begin[is_unfinished].amax() + self.block_length
        return int(begin[is_unfinished].amin()), min(int(end), self.ids.shape[1])

    def window(self, together: bool) -> Tensor:
        """The open positions of each row's current block, bool `[B, G]`."""
        return self.is_open & (self.block == self.current(together))

    def commit(self, places: Tensor, tokens: Tensor) -> None:
        """Decides places (bool, `[B, G]`) for good, with the tokens that stand there (int64, `[B, G]`)."""
        self.answer[places] = tokens[places]
        self.is_open &= ~places


def check_left_padding(prompts: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mask as bool `[B, P]`, all true if there is none."""
    if prompts.ndim != 2 or prompts.shape[1] == 0:
        raise ValueError(f"input_ids of shape {list(prompts.shape)}: pass prompts [B, P] of at least one token.")
    if attention_mask is None:
        return torch.ones_like(prompts, dtype=torch.bool)
    is_real = attention_mask.to(prompts.device).bool()
    if is_real.shape != prompts.shape:
        raise ValueError(
            f"attention_mask is {list(is_real.shape)}, input_ids {list(prompts.shape)}: they must be equal."
        )
    wrong = (~is_real[:, -1] | (is_real[:, :-1] & ~is_real[:, 1:]).any(1)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"Rows {wrong} of attention_mask have padding on the right or inside: pad prompts on the left, "
            "tokenizer.padding_side = 'left'."
        )
    return is_real
