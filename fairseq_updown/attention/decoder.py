"""Decoder self-attention: own and previous block raw, earlier blocks through their slots."""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoding.beams import BeamHistory
from ..decoding.cache import PendingSlots, SelfAttentionCache
from .functional import attend, merge_heads, split_heads, to_blocks
from .projections import UpdownAttention
from .slots import PooledBlocks


class DecoderSelfAttention(UpdownAttention):
    """Causal attention: a query of block j sees, in one softmax, the raw keys of block j - 1, those
    of block j up to itself, and the slots of blocks 0 ... j - 2, all of them complete.

    Up to two blocks long, that is plain causal attention. Rows must not be left-padded.

    Args:
        block_size: b, tokens per block.
        kwargs: see :class:`UpdownAttention`. Without a `compressor` there are no slots.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, block_size: int, **kwargs: Any):
        super().__init__(embed_dim, num_heads, self_attention=True, **kwargs)
        self.block_size = block_size

    def forward(  # type: ignore[override]
        self, x: Tensor, state: Optional[PooledBlocks]
    ) -> Tuple[Tensor, Optional[PooledBlocks]]:
        """All tokens at once.

        Args:
            x: `(bsz, tgt_len, embed_dim)`.
            state: the pooled blocks of the layer before; None makes this an anchor layer.

        Returns:
            `(bsz, tgt_len, embed_dim)` and the refreshed state, of all blocks that any query sees;
            None where there is none.
        """
        query, key, value = self.project(x)
        how = dict(scale=self.scaling, dropout=self.attention_dropout)
        if x.size(1) <= 2 * self.block_size:
            heads = (split_heads(t, self.num_heads) for t in (query, key, value))
            out = attend(*heads, is_causal=True, **how)
            return self.project_out(merge_heads(out), self.updown_parameters()), None
        blocks, query, key, value = (to_blocks(t, self.block_size) for t in (x, query, key, value))
        num_slots, bias, unused = 0, None, self.updown_parameters()
        if self.compressor is not None:
            num_slots = self.compressor.num_slots
            unused = self.compressor.idle_parameters(state)
            state = self.compress(blocks[:, :-2], state)
        key, value = self.beside_previous(key), self.beside_previous(value)
        if state is not None:
            key, value, bias = self.beside_slots(key, value, state)
        mask = self.visible(blocks.size(1), num_slots, x.device)
        out = attend(
            self.blocks_first(query),
            self.blocks_first(key),
            self.blocks_first(value),
            key_bias=bias,
            mask=mask.unsqueeze(1),
            **how,
        )
        out = out.unflatten(1, (x.size(0), self.num_heads)).permute(1, 2, 0, 3, 4).flatten(2, 3)
        return self.project_out(merge_heads(out[:, :, : x.size(1)]), unused), state

    def blocks_first(self, x: Tensor) -> Tensor:
        """`(bsz, num_blocks, L, d)` -> `(num_blocks, bsz * num_heads, L, head_dim)`.

        The mask is the same for all samples and heads, so they share one dimension.
        """
        return split_heads(x, self.num_heads).transpose(0, 1).flatten(1, 2)

    @staticmethod
    def beside_previous(x: Tensor) -> Tensor:
        """Sets each block behind the one before: `(bsz, num_blocks, 2 block_size, d)`."""
        previous = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        return torch.cat([previous, x], dim=2)

    def visible(self, num_blocks: int, num_slots: int, device: torch.device) -> Tensor:
        """Who sees whom, `(num_blocks, block_size, 2 block_size + (num_blocks - 2) num_slots)`."""
        block = torch.arange(num_blocks, device=device).view(-1, 1, 1)
        position = torch.arange(self.block_size, device=device)
        shape = (num_blocks, self.block_size)
        previous = (block > 0).expand(*shape, self.block_size)
        own = (position.unsqueeze(1) >= position).expand(*shape, self.block_size)
        slot_block = torch.arange(num_blocks - 2, device=device).repeat_interleave(num_slots)
        slots = (slot_block <= block - 2).expand(*shape, slot_block.numel())
        return torch.cat([previous, own, slots], dim=2)

    def compress(self, blocks: Tensor, state: Optional[PooledBlocks]) -> PooledBlocks:
        """Up, of complete blocks, `(bsz, num_blocks, block_size, embed_dim)`."""
        assert self.compressor is not None
        scored = self.compressor.scores_tokens(state)
        mean_logit = self.mean_logit(blocks, None) if scored else None
        return self.compressor(blocks, mean_logit, None, None, state)

    def beside_slots(
        self, key: Tensor, value: Tensor, state: PooledBlocks
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Sets all slots beside each block's raw keys and values; the bias is
        `(num_blocks, bsz * num_heads, S)`, 0 for raw keys."""
        bsz, num_blocks, num_raw, _ = key.shape
        slot_key, slot_value, slot_bias = self.project_slots(state)
        per_block = (bsz, num_blocks, -1, -1)
        bias = torch.cat([slot_bias.new_zeros(bsz, self.num_heads, num_raw), slot_bias], dim=2)
        return (
            torch.cat([key, slot_key.unsqueeze(1).expand(per_block)], dim=2),
            torch.cat([value, slot_value.unsqueeze(1).expand(per_block)], dim=2),
            bias.flatten(0, 1).expand(num_blocks, -1, -1),
        )

    def step(
        self,
        x: Tensor,
        state: Optional[PooledBlocks],
        cache: SelfAttentionCache,
        history: BeamHistory,
    ) -> Tuple[Tensor, Optional[PooledBlocks], SelfAttentionCache]:
        """One token more, with what :meth:`forward` would give it.

        Args:
            x: `(rows, 1, embed_dim)`.
            state: of the layer before, where this token completes a block.
            cache: of the tokens so far.
            history: what each row descends from, this token included.

        Returns:
            `(rows, 1, embed_dim)`; the refreshed state of the block that this token completed, or
            None; the cache with this token.
        """
        last = history.by_sentence(x.squeeze(1))
        key, value = (split_heads(f(last), self.num_heads) for f in (self.k_proj, self.v_proj))
        cache = cache.add_token(history, key, value)
        if self.compressor is not None:
            cache = cache.add_input(history, self.block_size, last)
        query = split_heads(self.q_proj(last), self.num_heads)
        out = merge_heads(self.attend_cached(query, cache, history)).flatten(0, 1)
        out = self.out_proj(out.unsqueeze(1))
        if not history.completes_block(self.block_size):
            return out, None, cache
        state_after, new = None, None
        if self.compressor is not None:
            inputs = cache.completed_block(history, self.block_size)
            state_after = self.compress(inputs.unsqueeze(1), state)
            new = self.pending_slots(state_after, history)
        return out, state_after, cache.turn_block(history, self.block_size, new)

    def attend_cached(
        self, query: Tensor, cache: SelfAttentionCache, history: BeamHistory
    ) -> Tensor:
        """`(sentences, num_heads, beams, head_dim)` to all cached positions, of which each beam
        sees those that it descends from."""
        assert cache.key is not None
        assert cache.value is not None
        key, value = (t[:, :, : history.positions].flatten(2, 3) for t in (cache.key, cache.value))
        mask = history.mask
        if cache.slot_bias is not None:
            bias = cache.slot_bias.flatten(1, 2).transpose(1, 2).unsqueeze(2).to(query.dtype)
            bias = F.pad(bias, (0, key.size(2) - bias.size(3)))
            mask = bias if mask is None else mask + bias
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.attention_dropout, scale=self.scaling
        )

    def pending_slots(self, state: PooledBlocks, history: BeamHistory) -> PendingSlots:
        """The slots of the block just completed, as the cache holds them."""
        key, value, bias = self.project_slots(state)
        key, value, bias = (
            history.by_sentence(t).transpose(1, 2) for t in (key, value, bias.transpose(1, 2))
        )
        key, value = (
            t.unflatten(3, (self.num_heads, -1)).permute(0, 3, 1, 2, 4) for t in (key, value)
        )
        return PendingSlots(key, value, bias)
