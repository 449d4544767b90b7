"""Attention of every query to the m keys that suit it best."""

from typing import Optional, Tuple

from torch import Tensor

from ..attention.functional import merge_heads
from ..mass import TokenMass
from .base import State
from .chosen_keys import chosen_bias, chosen_logits, largest_keys, sum_of_chosen
from .full import FullAttention


class TopMAttention(FullAttention):
    """softmax over each query's m = `settings.size` largest logits (top-k attention, arXiv
    2106.06899, section 2; top-m in TANGNN). A key's count bias is part of its logit; of equal
    logits the earlier key's is the larger.

    Linear in memory, and in time but for the choice, which is quadratic and has no gradient.
    """

    default_size = 64

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        if x.size(1) <= self.settings.size:
            return super().forward(x, padding_mask, mass, state)
        query, key, value = self.project_heads(x)
        bias = self.key_bias(mass, padding_mask)
        chosen = largest_keys(query, key, bias, self.settings.size)
        logits = chosen_logits(query, key, chosen)
        if bias is not None:
            logits = logits + chosen_bias(bias, chosen)
        weights = self.dropout_module(logits.softmax(dim=-1))
        out = sum_of_chosen(weights, value, chosen)
        return self.project_out(merge_heads(out)), state
