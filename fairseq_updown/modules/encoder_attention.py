"""Encoder self-attention: the own block raw, every other block through its slots."""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from .attention import UpdownAttention
from .compression import CompressedBlocks, TokenMass
from .functional import (
    MASKED_LOGIT,
    attend,
    full_precision,
    length_mask,
    pad_to_multiple,
    split_heads,
)


class EncoderSelfAttention(UpdownAttention):
    """One softmax per query over [the keys of its block] and [the slots of all other blocks].

    A sequence that fits its block is attended to by plain softmax attention.

    Args:
        block_size: b, tokens per block, counted from the first real token.
        kwargs: see :class:`UpdownAttention`. Without a `compressor` a block sees only itself.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, block_size: int, **kwargs: Any):
        super().__init__(embed_dim, num_heads, self_attention=True, **kwargs)
        self.block_size = block_size

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: Optional[CompressedBlocks],
    ) -> Tuple[Tensor, Optional[CompressedBlocks]]:
        """
        Args:
            x: `(bsz, length, embed_dim)`, real tokens first.
            padding_mask: `(bsz, length)` bool, True at pads; None if there are none.
            mass: what the tokens stand for, None if they were never pooled.
            state: the compressed blocks of the layer before; None makes this an anchor layer.

        Returns:
            `(bsz, length, embed_dim)` and the refreshed state, None where nothing is compressed.
        """
        query, key, value = self.q_proj(x) * self.scaling, self.k_proj(x), self.v_proj(x)
        bias = self.key_bias(mass, padding_mask)
        dropout = self.attention_dropout
        if x.size(1) <= self.block_size:
            heads = (split_heads(t, self.num_heads) for t in (query, key, value))
            return self.project_out(attend(*heads, key_bias=bias, dropout=dropout)), None
        blocks, query, key, value = (self.to_blocks(t) for t in (x, query, key, value))
        bias = self.bias_blocks(bias, x)
        if self.compressor is not None:
            state = self.compress(blocks, query, key, padding_mask, mass, state, x.size(1))
            key, value, bias = self.beside_slots(key, value, bias, state)
        heads = (split_heads(t.flatten(0, 1), self.num_heads) for t in (query, key, value))
        out = attend(*heads, key_bias=bias.flatten(0, 1), dropout=dropout)
        out = self.project_out(out).unflatten(0, blocks.shape[:2]).flatten(1, 2)
        return out[:, : x.size(1)], state

    def to_blocks(self, x: Tensor) -> Tensor:
        """`(bsz, length, *)` -> `(bsz, num_blocks, block_size, *)`, the last block filled up."""
        return pad_to_multiple(x, self.block_size, dim=1).unflatten(1, (-1, self.block_size))

    def bias_blocks(self, bias: Optional[Tensor], x: Tensor) -> Tensor:
        """The keys' bias `(bsz, num_blocks, num_heads or 1, block_size)`, filling hidden."""
        if bias is None:
            dtype = full_precision(self.count_bias.score_slope).dtype
            bias = torch.zeros(x.size(0), 1, x.size(1), dtype=dtype, device=x.device)
        bias = pad_to_multiple(bias, self.block_size, dim=2, value=MASKED_LOGIT)
        return bias.unflatten(2, (-1, self.block_size)).transpose(1, 2)

    def compress(
        self,
        blocks: Tensor,
        query: Tensor,
        key: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: Optional[CompressedBlocks],
        length: int,
    ) -> CompressedBlocks:
        """Up: blocks, query, key are `(bsz, num_blocks, block_size, embed_dim)`."""
        assert self.compressor is not None
        bsz, num_blocks, block_size, _ = blocks.shape
        if padding_mask is None:
            lengths = torch.full((bsz,), length, device=blocks.device)
        else:
            lengths = padding_mask.size(1) - padding_mask.sum(dim=1)
        starts = torch.arange(num_blocks, device=blocks.device) * block_size
        block_lengths = (lengths.unsqueeze(1) - starts).clamp(min=0, max=block_size)
        with torch.autocast(blocks.device.type, enabled=False):
            query = full_precision(query)
            share = 1.0 / (block_lengths.clamp(min=1) * self.num_heads).to(query.dtype)
            is_real = ~length_mask(block_lengths, block_size)
            query_mean = ((is_real * share.unsqueeze(-1)).unsqueeze(2) @ query).squeeze(2)
        counts = self.to_blocks(mass.counts) if mass is not None else None
        return self.compressor(blocks, query_mean, key, block_lengths, counts, state)

    def beside_slots(
        self, key: Tensor, value: Tensor, bias: Tensor, state: CompressedBlocks
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Sets every block's keys, values and bias beside those of all other blocks' slots."""
        bsz, num_blocks, num_slots, _ = state.slots.shape
        slots = state.slots.flatten(1, 2)
        slot_bias = self.count_bias(state.counts.flatten(1, 2), state.scores.flatten(1, 2))
        block = torch.arange(num_blocks, device=key.device)
        own = block.unsqueeze(1) == block.repeat_interleave(num_slots)
        per_block = (bsz, num_blocks, -1, -1)
        slot_bias = slot_bias.unsqueeze(1).expand(per_block)
        slot_bias = slot_bias.masked_fill(own.unsqueeze(1), MASKED_LOGIT)
        slot_key = self.k_proj(slots).unsqueeze(1).expand(per_block)
        slot_value = self.v_proj(slots).unsqueeze(1).expand(per_block)
        return (
            torch.cat([key, slot_key], dim=2),
            torch.cat([value, slot_value], dim=2),
            torch.cat([bias.expand(-1, -1, self.num_heads, -1), slot_bias], dim=3),
        )
