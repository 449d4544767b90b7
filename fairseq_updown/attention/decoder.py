"""Decoder self-attention: own and previous block raw, earlier blocks through their slots."""

from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoding.beams import BeamHistory, write
from ..ops.step_linear import step_linear
from .functional import attend, merge_heads, split_heads, to_blocks
from .projections import IncrementalState, UpdownAttention
from .slots import CompressedBlocks


class DecoderSelfAttention(UpdownAttention):
    """Causal attention: a query of block j sees, in one softmax, the raw keys of block j - 1, those
    of block j up to itself, and the slots of blocks 0 ... j - 2, all of them complete.

    Up to two blocks long, that is plain causal attention. Rows must not be left-padded.

    Args:
        block_size: b, tokens per block.
        kwargs: see :class:`UpdownAttention`. Without a `compressor` there are no slots.
    """

    cache_name = "self_attn"

    def __init__(self, embed_dim: int, num_heads: int, *, block_size: int, **kwargs: Any):
        super().__init__(embed_dim, num_heads, self_attention=True, **kwargs)
        self.block_size = block_size

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        state: Optional[CompressedBlocks],
        incremental_state: Optional[IncrementalState] = None,
        history: Optional[BeamHistory] = None,
    ) -> Tuple[Tensor, Optional[CompressedBlocks]]:
        """
        Args:
            x: `(bsz, tgt_len, embed_dim)`; with `incremental_state`, tgt_len is 1.
            state: the compressed blocks of the layer before; None makes this an anchor layer.
            history: with `incremental_state`, what each row descends from, this token included.

        Returns:
            `(bsz, tgt_len, embed_dim)` and the refreshed state, None where nothing is compressed:
            of all blocks that any query sees, or of the block that this step completed.
        """
        if incremental_state is not None and history is not None:
            return self.step(x, state, incremental_state, history)
        query, key, value = self.q_proj(x) * self.scaling, self.k_proj(x), self.v_proj(x)
        if x.size(1) <= 2 * self.block_size:
            heads = (split_heads(t, self.num_heads) for t in (query, key, value))
            out = attend(*heads, is_causal=True, dropout=self.attention_dropout)
            return self.project_out(merge_heads(out)), None
        blocks, query, key, value = (to_blocks(t, self.block_size) for t in (x, query, key, value))
        num_slots, bias = 0, None
        if self.compressor is not None:
            num_slots = self.compressor.num_slots
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
            dropout=self.attention_dropout,
        )
        out = out.unflatten(1, (x.size(0), self.num_heads)).permute(1, 2, 0, 3, 4).flatten(2, 3)
        return self.project_out(merge_heads(out[:, :, : x.size(1)])), state

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

    def compress(self, blocks: Tensor, state: Optional[CompressedBlocks]) -> CompressedBlocks:
        """Up, of complete blocks, `(bsz, num_blocks, block_size, embed_dim)`."""
        assert self.compressor is not None
        lengths = torch.full(blocks.shape[:2], self.block_size, device=blocks.device)
        return self.compressor(blocks, *self.mean_logit(blocks, lengths), lengths, None, state)

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

    def step(
        self,
        x: Tensor,
        state: Optional[CompressedBlocks],
        incremental_state: IncrementalState,
        history: BeamHistory,
    ) -> Tuple[Tensor, Optional[CompressedBlocks]]:
        """One token, `(rows, 1, embed_dim)`; the cache holds O(b + T r / b) vectors.

        The cache, laid out as `beams.py` says: `block_input` `(sentences, positions, beams, d)` of
        the current block; `slot_bias` `(*, num_heads)` of the slots; head by head
        `(sentences, num_heads, positions, beams, head_dim)`, `prev_key`, `prev_value` of all
        positions; `pending_key`, `pending_value`, `pending_bias` of the previous block's slots.
        """
        cache = self.get_incremental_state(incremental_state, self.cache_name) or {}
        position = history.positions - 1
        last, linear = history.by_sentence(x.squeeze(1)), step_linear(incremental_state)
        for name, proj in (("prev_key", self.k_proj), ("prev_value", self.v_proj)):
            new = split_heads(linear(proj, last), self.num_heads)
            cache[name] = write(cache.get(name), position, new, dim=2)
        query = split_heads(linear(self.q_proj, last) * self.scaling, self.num_heads)
        out = merge_heads(self.attend_cached(query, cache, history)).flatten(0, 1)
        out = self.project_out(out.unsqueeze(1), linear)
        state_after: Optional[CompressedBlocks] = None
        if self.compressor is not None:
            in_block = (history.num_tokens - 1) % self.block_size
            cache["block_input"] = write(cache.get("block_input"), in_block, last)
        if history.completes_block(self.block_size):
            pending: Optional[Dict[str, Tensor]] = None
            if self.compressor is not None:
                state_after = self.compress_cached(cache, history, state)
                pending = self.slots_to_cache(state_after, history)
            if history.num_tokens > self.block_size:
                self.turn_block(cache, history)
            cache.update(pending or {})
        self.set_incremental_state(incremental_state, self.cache_name, cache)
        return out, state_after

    def attend_cached(
        self, query: Tensor, cache: Dict[str, Optional[Tensor]], history: BeamHistory
    ) -> Tensor:
        """`(sentences, num_heads, beams, head_dim)` to all cached positions, of which each beam
        sees those that it descends from."""
        key, value = (
            t[:, :, : history.positions].flatten(2, 3)
            for t in (cache["prev_key"], cache["prev_value"])
            if t is not None
        )
        mask, slot_bias = history.mask, cache.get("slot_bias")
        if slot_bias is not None:
            bias = slot_bias.flatten(1, 2).transpose(1, 2).unsqueeze(2).to(query.dtype)
            bias = F.pad(bias, (0, key.size(2) - bias.size(3)))
            mask = bias if mask is None else mask + bias
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.attention_dropout, scale=1.0
        )

    def compress_cached(
        self,
        cache: Dict[str, Optional[Tensor]],
        history: BeamHistory,
        state: Optional[CompressedBlocks],
    ) -> CompressedBlocks:
        """Up, of the block just completed, for every hypothesis."""
        inputs = cache["block_input"]
        assert inputs is not None
        origin = history.origin[:, :, -self.block_size :]
        inputs = history.collect(inputs[:, : self.block_size], origin)
        return self.compress(inputs.unsqueeze(1), state)

    def slots_to_cache(self, state: CompressedBlocks, history: BeamHistory) -> Dict[str, Tensor]:
        """The slots of the block just completed, as the cache holds them."""
        key, value, bias = self.project_slots(state)
        key, value, bias = (
            history.by_sentence(t).transpose(1, 2) for t in (key, value, bias.transpose(1, 2))
        )
        return {
            "pending_key": self.head_by_head(key),
            "pending_value": self.head_by_head(value),
            "pending_bias": bias,
        }

    def head_by_head(self, x: Tensor) -> Tensor:
        """`(sentences, positions, beams, d)` -> `(sentences, num_heads, positions, beams, *)`."""
        return x.unflatten(3, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)

    def turn_block(self, cache: Dict[str, Optional[Tensor]], history: BeamHistory) -> None:
        """The pending slots take the place of the tokens that they were made of."""
        for name in ("key", "value"):
            tensor, pending = cache[f"prev_{name}"], cache.get(f"pending_{name}")
            assert tensor is not None
            slots, tokens = history.split(tensor, self.block_size, dim=2)
            parts = [slots, tokens] if pending is None else [slots, pending, tokens]
            cache[f"prev_{name}"] = torch.cat(parts, dim=2)
        pending, seen = cache.get("pending_bias"), cache.get("slot_bias")
        if pending is not None:
            cache["slot_bias"] = pending if seen is None else torch.cat([seen, pending], dim=1)

    def regather(
        self,
        incremental_state: IncrementalState,
        history: BeamHistory,
        new_order: Tensor,
        sentences: int,
    ) -> None:
        """Gives every row of `new_order` its own copy of its past, grouped in `sentences`."""
        cache = self.get_incremental_state(incremental_state, self.cache_name)
        if cache is None:
            return
        in_block = history.num_tokens % self.block_size
        seen, pending = cache.get("slot_bias"), cache.get("pending_bias")
        origins = {
            "prev_key": history.origin,
            "prev_value": history.origin,
            "block_input": history.origin[:, :, history.positions - in_block :],
        }
        if seen is not None:
            origins["slot_bias"] = history.origin[:, :, : seen.size(1)]
        if pending is not None:
            origin = history.pending_origin.unsqueeze(-1).expand(-1, -1, pending.size(1))
            origins.update({f"pending_{name}": origin for name in ("key", "value", "bias")})
        for name, origin in origins.items():
            tensor = cache.get(name)
            if tensor is None:
                continue
            by_head = tensor.dim() == 5
            if by_head:
                tensor = tensor.permute(0, 2, 3, 1, 4).flatten(3)
            past = history.collect(tensor[:, : origin.size(2)], origin)
            past = past.index_select(0, new_order).unflatten(0, (sentences, -1)).transpose(1, 2)
            cache[name] = (self.head_by_head(past) if by_head else past).contiguous()
        self.set_incremental_state(incremental_state, self.cache_name, cache)
