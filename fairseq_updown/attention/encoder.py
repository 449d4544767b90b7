"""Encoder self-attention: the own block raw, every other block through its slots."""

from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from ..mass import TokenMass
from ..mixers.base import AttentionMixer, Settings, State
from ..ops.block_attention import BlockKeys, attend_beside_slots
from .functional import attend, merge_heads, real_lengths, split_heads, to_blocks
from .slots import BlockCompressor, CompressedBlocks


class EncoderSelfAttention(AttentionMixer):
    """One softmax per query over [the keys of its block] and [the slots of all other blocks].

    A sequence that fits its block is attended to by plain softmax attention.

    Args:
        settings: `block_size` is b, tokens per block, counted from the first real token.
        kwargs: see :class:`~..attention.UpdownAttention`. Without a `compressor` a block sees only
            itself.
    """

    def __init__(self, embed_dim: int, num_heads: int, settings: Settings, **kwargs: Any):
        super().__init__(embed_dim, num_heads, settings, **kwargs)
        self.block_size = settings.block_size

    @classmethod
    def own_arguments(cls, embed_dim: int, cfg: Any) -> Dict[str, Any]:
        return {"compressor": BlockCompressor.from_config(embed_dim, cfg, cfg.updown_slots)}

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        """The state has the fields of a :class:`CompressedBlocks`, and none where nothing was
        compressed; without it this is an anchor layer."""
        query, key, value = self.q_proj(x) * self.scaling, self.k_proj(x), self.v_proj(x)
        bias = self.key_bias(mass, padding_mask)
        dropout = self.attention_dropout
        if x.size(1) <= self.block_size:
            heads = (split_heads(t, self.num_heads) for t in (query, key, value))
            out = attend(*heads, key_bias=bias, dropout=dropout)
            return self.project_out(merge_heads(out)), ()
        blocks, query, key, value = (to_blocks(t, self.block_size) for t in (x, query, key, value))
        bias = self.bias_blocks(bias, x, self.block_size)
        if self.compressor is None:
            heads = (split_heads(t.flatten(0, 1), self.num_heads) for t in (query, key, value))
            bias = bias.flatten(0, 1) if bias is not None else None
            out = merge_heads(attend(*heads, key_bias=bias, dropout=dropout)).view(query.shape)
        else:
            before = CompressedBlocks(*state) if state else None
            state = compressed = self.compress(blocks, real_lengths(x, padding_mask), mass, before)
            keys = BlockKeys(key, value, bias, *self.project_slots(compressed))
            out = attend_beside_slots(query, keys, self.num_heads, dropout)
        return self.project_out(out.flatten(1, 2)[:, : x.size(1)]), state

    def compress(
        self,
        blocks: Tensor,
        lengths: Tensor,
        mass: Optional[TokenMass],
        state: Optional[CompressedBlocks],
    ) -> CompressedBlocks:
        """Up: blocks are `(bsz, num_blocks, block_size, embed_dim)`, lengths `(bsz or 1,)`."""
        assert self.compressor is not None
        bsz, num_blocks, block_size, _ = blocks.shape
        starts = torch.arange(num_blocks, device=blocks.device) * block_size
        block_lengths = (lengths.unsqueeze(1) - starts).clamp(min=0, max=block_size)
        block_lengths = block_lengths.expand(bsz, -1)
        counts = to_blocks(mass.counts, self.block_size) if mass is not None else None
        mean_logit = self.mean_logit(blocks, block_lengths)
        return self.compressor(blocks, *mean_logit, block_lengths, counts, state)
