"""Flow-Attention: tokens compete for what flows out and share what flows in."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from ..attention.functional import full_precision, merge_heads, split_heads
from ..mass import TokenMass
from .base import AttentionMixer, State

# What flows through a token at least: keeps a row of pads, through which nothing flows, finite.
_MIN_FLOW = 1e-6


class FlowAttention(AttentionMixer):
    """Linear attention with conserved flows; linear in length.

    "Flowformer: Linearizing Transformers with Conservation Flows", arXiv:2202.06258, section 3,
    with phi = sigmoid, in each head:

    - the flow into sink i and out of source j: I_i = phi(Q_i) . sum_j phi(K_j) and
      O_j = phi(K_j) . sum_i phi(Q_i);
    - the same while the other side is conserved: I^_i = phi(Q_i) . sum_j phi(K_j) / O_j and
      O^_j = phi(K_j) . sum_i phi(Q_i) / I_i;
    - competition V^ = n softmax(O^) V, n the number of sources, as the authors' code has it (which
      also clamps O^, of mean 1, to at most 1; the equation does not);
    - aggregation A_i = phi(Q_i) / I_i (phi(K)^T V^); allocation R_i = sigmoid(I^_i) A_i.

    A token of count c is c sinks and c sources, a pad none. There are no weights to drop: dropout
    of attention does nothing.
    """

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        query, key, value = (
            split_heads(full_precision(proj(x)), self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        log_counts = self.key_bias(mass, padding_mask)
        if log_counts is None:
            log_counts = query.new_zeros(1, 1, x.size(1))
        with torch.autocast(x.device.type, enabled=False):
            out = flow_attention(query, key, value, log_counts)
        return self.project_out(merge_heads(out).to(x.dtype)), None


def flow_attention(query: Tensor, key: Tensor, value: Tensor, log_counts: Tensor) -> Tensor:
    """R of :class:`FlowAttention`.

    Args:
        query, key, value: `(B, H, N, head_dim)`.
        log_counts: `(B or 1, H or 1, N)`, of what each token stands for; `MASKED_LOGIT` at pads.

    Returns:
        `(B, H, N, head_dim)`.
    """
    log_counts = log_counts.unsqueeze(-1)
    counts = log_counts.exp()
    sinks, sources = query.sigmoid(), key.sigmoid()

    def flow(tokens: Tensor, others: Tensor) -> Tensor:
        """`(B, H, N, 1)`, what flows between each token and all others."""
        return tokens @ (counts * others).sum(dim=-2).unsqueeze(-1)

    inflow = flow(sinks, sources).clamp(min=_MIN_FLOW)
    outflow = flow(sources, sinks).clamp(min=_MIN_FLOW)
    allocation = flow(sinks, sources / outflow).sigmoid()
    competition = (flow(sources, sinks / inflow) + log_counts).softmax(dim=-2)
    supply = sources.transpose(-1, -2) @ (competition * value)
    return (sinks * (allocation * counts.sum(dim=-2, keepdim=True) / inflow)) @ supply
