"""The decoder's attention to the encoder's memory."""

from typing import Optional, Tuple

from torch import Tensor

from ..mass import TokenMass
from ..ops.step_linear import step_linear
from .functional import attend, attention_weights, merge_heads, split_heads
from .projections import IncrementalState, UpdownAttention


class CrossAttention(UpdownAttention):
    """The decoder's attention to the encoder's memory, with the memory's count bias.

    Keys and values are computed once per sentence and shared by the rows of all its beams: with
    R rows and S sentences, rows [i R/S, (i + 1) R/S) belong to sentence i. Nothing has to be told
    the beam size; :func:`~.beams.regroup_rows` keeps that order however rows are moved.
    """

    cache_name = "cross_attn"

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        incremental_state: Optional[IncrementalState] = None,
        need_weights: bool = False,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """
        Args:
            x: `(rows, tgt_len, embed_dim)`.
            memory: `(sentences, memory_len, encoder_embed_dim)`.
            padding_mask: `(sentences, memory_len)` bool, or None if there are no pads.
            mass: of the memory, None if it was never pooled.

        Returns:
            `(rows, tgt_len, embed_dim)`, and if asked for the weights
            `(num_heads, rows, tgt_len, memory_len)`.
        """
        key, value, bias = self.keys_and_values(memory, padding_mask, mass, incremental_state)
        rows, tgt_len, _ = x.shape
        beams, linear = rows // key.size(0), step_linear(incremental_state)
        query = (linear(self.q_proj, x) * self.scaling).view(key.size(0), beams * tgt_len, -1)
        query = split_heads(query, self.num_heads)
        weights = None
        if need_weights:
            weights = attention_weights(query, key, bias)
            out = self.dropout_module(weights).to(value.dtype) @ value
            weights = weights.unflatten(2, (beams, tgt_len)).permute(1, 0, 2, 3, 4).flatten(1, 2)
        else:
            out = attend(query, key, value, key_bias=bias, dropout=self.attention_dropout)
        out = out.unflatten(2, (beams, tgt_len)).transpose(1, 2).flatten(0, 1)
        return self.project_out(merge_heads(out), linear), weights

    def keys_and_values(
        self,
        memory: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        incremental_state: Optional[IncrementalState],
    ) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
        """Keys, values `(sentences, num_heads, memory_len, head_dim)` and their bias, cached."""
        cached = self.get_incremental_state(incremental_state, self.cache_name)
        if cached is not None:
            return cached["prev_key"], cached["prev_value"], cached["prev_bias"]
        key = split_heads(self.k_proj(memory), self.num_heads)
        value = split_heads(self.v_proj(memory), self.num_heads)
        bias = self.key_bias(mass, padding_mask)
        if incremental_state is not None:
            key, value = key.contiguous(), value.contiguous()  # read at every step, head by head
            cache = {"prev_key": key, "prev_value": value, "prev_bias": bias}
            self.set_incremental_state(incremental_state, self.cache_name, cache)
        return key, value, bias
