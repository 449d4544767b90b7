"""Exact attention: every token sees every other."""

from typing import Optional, Tuple

from torch import Tensor

from ..compression import TokenMass
from ..functional import attend, merge_heads, split_heads
from .base import AttentionMixer, State


class FullAttention(AttentionMixer):
    """softmax(Q K^T / sqrt(head_dim) + log-count bias) V ("Attention Is All You Need", eq. 1)."""

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        query, key, value = (
            split_heads(t, self.num_heads)
            for t in (self.q_proj(x) * self.scaling, self.k_proj(x), self.v_proj(x))
        )
        bias = self.key_bias(mass, padding_mask)
        out = attend(query, key, value, key_bias=bias, dropout=self.attention_dropout)
        return self.project_out(merge_heads(out)), state
