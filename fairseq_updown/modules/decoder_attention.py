"""Decoder self-attention: own and previous block raw, earlier blocks through their slots."""

from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from .attention import IncrementalState, UpdownAttention, select_rows
from .compression import CompressedBlocks
from .functional import attend, full_precision, merge_heads, pad_to_multiple, split_heads


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
        self,
        x: Tensor,
        state: Optional[CompressedBlocks],
        incremental_state: Optional[IncrementalState] = None,
    ) -> Tuple[Tensor, Optional[CompressedBlocks]]:
        """
        Args:
            x: `(bsz, tgt_len, embed_dim)`; with `incremental_state`, tgt_len is 1.
            state: the compressed blocks of the layer before; None makes this an anchor layer.

        Returns:
            `(bsz, tgt_len, embed_dim)` and the refreshed state, None where nothing is compressed:
            of all blocks that any query sees, or of the block that this step completed.
        """
        if incremental_state is not None:
            return self.step(x, state, incremental_state)
        query, key, value = self.q_proj(x) * self.scaling, self.k_proj(x), self.v_proj(x)
        if x.size(1) <= 2 * self.block_size:
            heads = (split_heads(t, self.num_heads) for t in (query, key, value))
            return self.project_out(
                attend(*heads, is_causal=True, dropout=self.attention_dropout)
            ), None
        blocks, query, key, value = (self.to_blocks(t) for t in (x, query, key, value))
        num_slots, bias = 0, None
        if self.compressor is not None:
            num_slots = self.compressor.num_slots
            query_sum = full_precision(query[:, :-2]).sum(dim=2)
            state = self.compress(blocks[:, :-2], query_sum, key[:, :-2], state)
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
            dropout=self.attention_dropout,
        )
        out = out.unflatten(1, (x.size(0), self.num_heads)).permute(1, 2, 0, 3, 4).flatten(2, 3)
        return self.project_out(out[:, :, : x.size(1)]), state

    def to_blocks(self, x: Tensor) -> Tensor:
        """`(bsz, length, *)` -> `(bsz, num_blocks, block_size, *)`, the last block filled up."""
        return pad_to_multiple(x, self.block_size, dim=1).unflatten(1, (-1, self.block_size))

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

    def compress(
        self, blocks: Tensor, query_sum: Tensor, key: Tensor, state: Optional[CompressedBlocks]
    ) -> CompressedBlocks:
        """Up, of complete blocks.

        Args:
            blocks, key: `(bsz, num_blocks, block_size, embed_dim)`.
            query_sum: `(bsz, num_blocks, embed_dim)`, at least float32.
        """
        assert self.compressor is not None
        query_mean = query_sum / (self.block_size * self.num_heads)
        lengths = torch.full(blocks.shape[:2], self.block_size, device=blocks.device)
        return self.compressor(blocks, query_mean, key, lengths, None, state)

    def beside_slots(
        self, key: Tensor, value: Tensor, state: CompressedBlocks
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

    def project_slots(self, state: CompressedBlocks) -> Tuple[Tensor, Tensor, Tensor]:
        """The slots' keys and values `(bsz, slots, d)` and bias `(bsz, num_heads, slots)`."""
        slots = state.slots.flatten(1, 2)
        bias = self.count_bias(state.counts.flatten(1, 2), state.scores.flatten(1, 2))
        return self.k_proj(slots), self.v_proj(slots), bias

    def step(
        self,
        x: Tensor,
        state: Optional[CompressedBlocks],
        incremental_state: IncrementalState,
    ) -> Tuple[Tensor, Optional[CompressedBlocks]]:
        """One token, `(bsz, 1, embed_dim)`; the cache holds O(b + T r / b) vectors.

        The cache, batch first: raw `prev_key`, `prev_value` `(bsz, num_heads, <= 2b, head_dim)` of
        the previous and the current block; `block_input` `(bsz, < b, embed_dim)` and `query_sum`
        `(bsz, embed_dim)` of the current block; `slot_key`, `slot_value`
        `(bsz, num_heads, slots, head_dim)` and `slot_bias` `(bsz, num_heads, slots)` of all
        completed blocks, those of the previous block last.
        """
        cache = self.get_incremental_state(incremental_state, "self_attn") or {}
        scaled = self.q_proj(x) * self.scaling
        query = split_heads(scaled, self.num_heads)
        key = _append(cache.get("prev_key"), split_heads(self.k_proj(x), self.num_heads))
        value = _append(cache.get("prev_value"), split_heads(self.v_proj(x), self.num_heads))
        out = self.project_out(self.attend_cached(query, key, value, cache))
        block_complete = key.size(2) % self.block_size == 0
        new_cache: Dict[str, Optional[Tensor]] = dict(cache)
        if self.compressor is None:
            state = None
        else:
            inputs = _append(cache.get("block_input"), x, dim=1)
            query_sum = full_precision(scaled).squeeze(1)
            if cache.get("query_sum") is not None:
                query_sum = query_sum + cache["query_sum"]
            if block_complete:
                block_key = merge_heads(key[:, :, -self.block_size :]).unsqueeze(1)
                state = self.compress(inputs.unsqueeze(1), query_sum.unsqueeze(1), block_key, state)
                new_cache.update(self.append_slots(state, cache))
                new_cache.update(block_input=None, query_sum=None)
            else:
                state = None
                new_cache.update(block_input=inputs, query_sum=query_sum)
        if block_complete:
            key, value = key[:, :, -self.block_size :], value[:, :, -self.block_size :]
        new_cache.update(prev_key=key, prev_value=value)
        self.set_incremental_state(incremental_state, "self_attn", new_cache)
        return out, state

    def attend_cached(
        self, query: Tensor, key: Tensor, value: Tensor, cache: Dict[str, Optional[Tensor]]
    ) -> Tensor:
        """Attends to the raw keys and to the slots of all blocks before the previous one."""
        slot_key, slot_value = cache.get("slot_key"), cache.get("slot_value")
        slot_bias, bias = cache.get("slot_bias"), None
        if slot_key is not None and slot_value is not None and slot_bias is not None:
            assert self.compressor is not None
            seen = slot_key.size(2) - self.compressor.num_slots
            if seen > 0:
                raw_bias = slot_bias.new_zeros(*slot_bias.shape[:2], key.size(2))
                key = torch.cat([slot_key[:, :, :seen], key], dim=2)
                value = torch.cat([slot_value[:, :, :seen], value], dim=2)
                bias = torch.cat([slot_bias[:, :, :seen], raw_bias], dim=2)
        return attend(query, key, value, key_bias=bias, dropout=self.attention_dropout)

    def append_slots(
        self, state: CompressedBlocks, cache: Dict[str, Optional[Tensor]]
    ) -> Dict[str, Optional[Tensor]]:
        """The cache's slots with those of a newly completed block behind them."""
        key, value, bias = self.project_slots(state)
        return {
            "slot_key": _append(cache.get("slot_key"), split_heads(key, self.num_heads)),
            "slot_value": _append(cache.get("slot_value"), split_heads(value, self.num_heads)),
            "slot_bias": _append(cache.get("slot_bias"), bias),
        }

    def reorder_incremental_state(  # type: ignore[override]
        self, incremental_state: Optional[IncrementalState], new_order: Tensor
    ) -> Optional[IncrementalState]:
        """Moves the cached rows to `new_order`, `(new_bsz,)` long; rows may repeat or go."""
        cache = self.get_incremental_state(incremental_state, "self_attn")
        if cache is not None:
            moved = {name: select_rows(tensor, new_order) for name, tensor in cache.items()}
            self.set_incremental_state(incremental_state, "self_attn", moved)
        return incremental_state


def _append(cached: Optional[Tensor], new: Tensor, dim: int = 2) -> Tensor:
    return new if cached is None else torch.cat([cached, new], dim=dim)
