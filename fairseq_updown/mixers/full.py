"""Exact attention: every token sees every other."""

from typing import Optional, Tuple

from torch import Tensor

from ..mass import TokenMass
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
        out = self.attend_to_all(x, self.key_bias(mass, padding_mask))
        return self.project_out(out), state
