"""Encoder self-attention: the own block raw, every other block through its slots."""

from typing import Any, Callable, Iterable, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mass import TokenMass
from .functional import (
    MASKED_LOGIT,
    attend,
    full_precision,
    length_mask,
    merge_heads,
    real_lengths,
    split_heads,
    to_blocks,
)
from .projections import UpdownAttention
from .slots import BlockLengths, EarlierSlots, PooledBlocks


class BlockKeys(NamedTuple):
    """What the queries of one block see of it, and what all other blocks see of it.

    Shape letters as in `functional.py`; r slots per block, G = num_blocks * r slots in all.

    Attributes:
        key, value: `(B, num_blocks, b, d)`, of the block's tokens.
        bias: `(B, num_blocks, H or 1, b)`, see :func:`attend`; None where all tokens are real.
        slot_key, slot_value: `(B, G, d)`, block by block.
        slot_bias: `(B, H, G)`.
        num_earlier: how many of the slots, the last ones, are of no block but of earlier segments.
    """

    key: Tensor
    value: Tensor
    bias: Optional[Tensor]
    slot_key: Tensor
    slot_value: Tensor
    slot_bias: Tensor
    num_earlier: int = 0


def attend_side_by_side(
    query: Tensor, keys: BlockKeys, num_heads: int, scale: float = 1.0, dropout: float = 0.0
) -> Tensor:
    """One softmax per query over the keys of its block and the slots of all others, which are
    repeated beside the keys of every block.

    Args:
        query: `(B, num_blocks, b, d)`.
        scale: of the queries.
        dropout: probability with which an attention weight is dropped.

    Returns:
        `(B, num_blocks, b, d)`.
    """
    bsz, num_blocks, block_size, _ = query.shape
    per_block = (bsz, num_blocks, -1, -1)
    own = own_slots(num_blocks, keys.slot_key.size(1) - keys.num_earlier, query.device)
    if keys.num_earlier:
        own = F.pad(own, (0, keys.num_earlier))
    slot_bias = keys.slot_bias.unsqueeze(1).expand(per_block)
    slot_bias = slot_bias.masked_fill(own.unsqueeze(1), MASKED_LOGIT)
    bias = keys.bias
    if bias is None:
        bias = slot_bias.new_zeros(bsz, num_blocks, 1, block_size)
    key = torch.cat([keys.key, keys.slot_key.unsqueeze(1).expand(per_block)], dim=2)
    value = torch.cat([keys.value, keys.slot_value.unsqueeze(1).expand(per_block)], dim=2)
    bias = torch.cat([bias.expand(-1, -1, num_heads, -1), slot_bias], dim=3)
    heads = (split_heads(t.flatten(0, 1), num_heads) for t in (query, key, value))
    out = attend(*heads, scale=scale, key_bias=bias.flatten(0, 1), dropout=dropout)
    return out.transpose(1, 2).reshape(query.shape)


def own_slots(num_blocks: int, num_slots: int, device: torch.device) -> Tensor:
    """`(num_blocks, num_slots)` bool, True where a slot is of the block."""
    own = torch.eye(num_blocks, dtype=torch.bool, device=device)
    return own.repeat_interleave(num_slots // num_blocks, dim=1)


class SlotAttention(UpdownAttention):
    """One softmax per query over [the keys of its block] and [the slots of all other blocks].

    A sequence that fits its block is attended to by plain softmax attention.

    Args:
        block_size: b, tokens per block, counted from the first real token.
        kwargs: see :class:`UpdownAttention`. Without a `compressor` a block sees only itself.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, block_size: int, **kwargs: Any):
        super().__init__(embed_dim, num_heads, self_attention=True, **kwargs)
        self.block_size = block_size
        # `ops/block_attention.py` has a faster one.
        self.attend_to_blocks: Callable[..., Tensor] = attend_side_by_side

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: Optional[PooledBlocks],
        earlier: Optional[EarlierSlots] = None,
    ) -> Tuple[Tensor, Optional[PooledBlocks]]:
        """
        Args:
            x: `(bsz, length, embed_dim)`, real tokens first.
            padding_mask: `(bsz, length)` bool, True at pads; None if there are none.
            mass: what the tokens stand for, None if they were never pooled.
            state: the pooled blocks of the layer before; None makes this an anchor layer.
            earlier: of the segments before x, which all blocks see as they see each other.

        Returns:
            `(bsz, length, embed_dim)`, whatever at pads, and the refreshed state; None where
            nothing was compressed.
        """
        query, key, value = self.project(x)
        bias = self.key_bias(mass, padding_mask)
        how = dict(scale=self.scaling, dropout=self.attention_dropout)
        if x.size(1) <= self.block_size and earlier is None:
            heads = (split_heads(t, self.num_heads) for t in (query, key, value))
            out = attend(*heads, key_bias=bias, **how)
            return self.project_out(merge_heads(out), self.idle(mass)), None
        blocks, query, key, value = (to_blocks(t, self.block_size) for t in (x, query, key, value))
        bias = self.bias_blocks(bias, x, self.block_size)
        if self.compressor is None:
            heads = (split_heads(t.flatten(0, 1), self.num_heads) for t in (query, key, value))
            bias = bias.flatten(0, 1) if bias is not None else None
            out = merge_heads(attend(*heads, key_bias=bias, **how)).view(query.shape)
            unused = self.idle(mass)
        else:
            unused = self.compressor.idle_parameters(state)
            state = self.compress(x, blocks, padding_mask, mass, state)
            num_earlier = earlier.slots.size(1) if earlier is not None else 0
            keys = BlockKeys(key, value, bias, *self.project_slots(state, earlier), num_earlier)
            out = self.attend_to_blocks(query, keys, self.num_heads, **how)
        return self.project_out(out.flatten(1, 2)[:, : x.size(1)], unused), state

    def compress(
        self,
        x: Tensor,
        blocks: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: Optional[PooledBlocks],
    ) -> PooledBlocks:
        """Up, of x, `(bsz, length, embed_dim)`, in blocks, `(bsz, num_blocks, block_size,
        embed_dim)`."""
        assert self.compressor is not None
        counts, lengths = None, state.lengths if state is not None else None
        if state is None:
            lengths = self.block_lengths(x, padding_mask)
            counts = to_blocks(mass.counts, self.block_size) if mass is not None else None
        mean_logit = None
        if self.compressor.scores_tokens(state):
            mean_logit = self.mean_logit(blocks, lengths.share if lengths is not None else None)
        return self.compressor(blocks, mean_logit, lengths, counts, state)

    def block_lengths(self, x: Tensor, padding_mask: Optional[Tensor]) -> Optional[BlockLengths]:
        """How the tokens x, `(bsz, length, embed_dim)`, fill their blocks; None if they do."""
        if padding_mask is None and x.size(1) % self.block_size == 0:
            return None
        starts = torch.arange(0, x.size(1), self.block_size, device=x.device)
        lengths = real_lengths(x, padding_mask).unsqueeze(1) - starts
        lengths = lengths.clamp(min=0, max=self.block_size).expand(x.size(0), -1)
        is_real = (~length_mask(lengths, self.block_size)).to(full_precision(x).dtype)
        share = is_real / lengths.clamp(min=1).unsqueeze(-1)
        return BlockLengths(lengths, share.unsqueeze(2))

    def idle(self, mass: Optional[TokenMass]) -> Iterable[nn.Parameter]:
        """The parameters of ours that attention without slots does not use."""
        if mass is None:
            return self.updown_parameters()
        return self.compressor.parameters() if self.compressor is not None else ()
