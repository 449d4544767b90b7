"""Up-DownFormer 2.0: later layers attend to the keys that a stage's first layer found best.

Source: github.com/Kevin-shihello-world/Up-DownFormer, UP-DOWNformer2.0.py; there is no paper, and
the code, whose later layers never reach the cache, gives the idea only. `updown` is its block form.
"""

from typing import Any, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from ..compression import TokenMass
from ..functional import attend, full_precision, is_largest, merge_heads, split_heads
from .base import AttentionMixer, Settings, State

QUERY_CHUNK = 64  # queries whose logits with all keys are held at once


class CachedTopkAttention(AttentionMixer):
    """The first layer of a stage attends to all keys, and per query i and head caches the set S_i
    of its k heaviest (`settings.size`, or all), their weights w_ij, made to sum to 1, and the
    values V~ = V. A later layer, O(length k embed_dim), attends to S_i only:

        a_ij = softmax over j in S_i of (q_i . k_j / sqrt(head_dim) + b_j + beta log(w_ij / e^b_j))
        V~_j <- g_j V_j + (1 - g_j) V~_j,        out_i = W_o sum_j a_ij V~_j
        w_ij <- g'_i a_ij + (1 - g'_i) w_ij

    b is the keys' count bias: the prior of a key is that of one of the tokens it stands for. beta,
    per head, starts at 1; the gates g, g' = sigmoid(W x + c), per token and head, at sigmoid(2).
    """

    default_size = 32

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        settings: Settings,
        *,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        **kwargs: Any,
    ):
        noise = dict(q_noise=q_noise, qn_block_size=qn_block_size)
        super().__init__(embed_dim, num_heads, settings, **noise, **kwargs)
        self.beta = nn.Parameter(torch.ones(num_heads))
        gates = nn.Linear(embed_dim, 2 * num_heads)
        nn.init.zeros_(gates.weight)
        nn.init.constant_(gates.bias, 2.0)
        self.gates = quant_noise(gates, q_noise, qn_block_size)

    def updown_parameters(self) -> Iterator[nn.Parameter]:
        yield from super().updown_parameters()
        yield self.beta
        yield from self.gates.parameters()

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        """The state is S `(bsz, num_heads, length, k)` long, log(w / e^b) of the same shape, and V~
        `(bsz, num_heads, length, head_dim)`."""
        query, key, value = self.project_heads(x)
        bias = self.key_bias(mass, padding_mask)
        if state:
            indices, prior, cached = state
        else:
            indices = heaviest_keys(query, key, bias, self.settings.size)
        logits = (query.unsqueeze(-2) @ take(key, indices).transpose(-1, -2)).squeeze(-2)
        logits = full_precision(logits)
        chosen_bias = torch.zeros_like(logits)
        if bias is not None:
            bias_per_head = bias.expand(-1, self.num_heads, -1).unsqueeze(-1)
            chosen_bias = take(bias_per_head, indices).squeeze(-1)
        logits = logits + chosen_bias
        if not state:
            out = attend(query, key, value, key_bias=bias, dropout=self.attention_dropout)
            prior = logits.log_softmax(dim=-1) - chosen_bias
            return self.project_out(merge_heads(out)), (indices, prior, value)
        beta = full_precision(self.beta).view(-1, 1, 1)
        log_weights = (logits + beta * prior).log_softmax(dim=-1)
        weight_gate, value_gate = split_heads(self.gates(x), self.num_heads).split(1, dim=-1)
        value = cached + value_gate.sigmoid() * (value - cached)
        weights = self.dropout_module(log_weights.exp()).to(value.dtype)
        out = (weights.unsqueeze(-2) @ take(value, indices)).squeeze(-2)
        weight_gate = full_precision(weight_gate)
        prior = torch.logaddexp(
            F.logsigmoid(weight_gate) + log_weights - chosen_bias,
            F.logsigmoid(-weight_gate) + prior,
        )
        return self.project_out(merge_heads(out)), (indices, prior, value)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """`(bsz, num_heads, length, d)` at `(bsz, num_heads, queries, k)` -> `(*indices.shape, d)`."""
    rows = indices.flatten(2).unsqueeze(-1).expand(-1, -1, -1, x.size(-1))
    return x.gather(2, rows).unflatten(2, indices.shape[2:])


@torch.no_grad()
def heaviest_keys(query: Tensor, key: Tensor, bias: Optional[Tensor], k: int) -> Tensor:
    """The k keys, or all, with the largest logits of each query; among equals the first.

    Args:
        query, key: `(bsz, num_heads, length, head_dim)`, the query scaled.
        bias: `(bsz, num_heads or 1, length)` or None.

    Returns:
        `(bsz, num_heads, length, min(k, length))` long, rising.
    """
    k = min(k, key.size(2))
    last_first = torch.arange(key.size(2), 0, -1, device=key.device)
    chunks = []
    with torch.autocast(key.device.type, enabled=False):
        keys = full_precision(key).transpose(-1, -2)
        for chunk in full_precision(query).split(QUERY_CHUNK, dim=2):
            logits = chunk @ keys
            if bias is not None:
                logits = logits + bias.unsqueeze(-2)
            chunks.append((is_largest(logits, k) * last_first).topk(k, dim=-1).indices)
    return torch.cat(chunks, dim=2)
