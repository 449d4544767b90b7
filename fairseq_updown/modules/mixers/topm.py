"""Attention of every query to the m keys that suit it best."""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..compression import TokenMass
from ..functional import full_precision, is_largest, merge_heads
from .base import State
from .full import FullAttention

# Bounds the memory: the logits, over all samples and heads, of the queries of one chunk.
_LOGITS_PER_CHUNK = 2**24


class TopMAttention(FullAttention):
    """softmax over each query's m = `settings.size` largest logits (top-k attention, arXiv
    2106.06899, section 2; top-m in TANGNN). A key's count bias is part of its logit; of equal
    logits the earlier key's is the larger.

    Quadratic in time, linear in memory: queries come in chunks, and what a chunk computed is
    computed again in the backward pass.
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
        size, dropout = self.settings.size, self.attention_dropout
        logits_per_query = query.size(0) * query.size(1) * key.size(2)
        outs = [
            checkpoint(
                attend_to_largest,
                *(chunk, key, value, bias, size, dropout),
                use_reentrant=False,
                preserve_rng_state=dropout > 0,
            )
            for chunk in query.split(max(1, _LOGITS_PER_CHUNK // logits_per_query), dim=2)
        ]
        return self.project_out(merge_heads(torch.cat(outs, dim=2))), state


def attend_to_largest(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Optional[Tensor],
    size: int,
    dropout: float = 0.0,
) -> Tensor:
    """:func:`~..functional.attend` to the `size` keys of largest logits, `size` <= S."""
    with torch.autocast(query.device.type, enabled=False):
        logits = full_precision(query) @ full_precision(key).transpose(-1, -2)
        if key_bias is not None:
            logits = logits + key_bias.unsqueeze(-2)
        kept = is_largest(logits.detach(), size)
        weights = logits.masked_fill(~kept, float("-inf")).softmax(dim=-1)
        return F.dropout(weights, dropout, training=dropout > 0).to(value.dtype) @ value
