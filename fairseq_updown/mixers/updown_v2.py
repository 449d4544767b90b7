"""Up-DownFormer 2.0: later layers attend to the keys that a stage's first layer found best.

Source: github.com/Kevin-shihello-world/Up-DownFormer, UP-DOWNformer2.0.py; there is no paper, and
the code, whose later layers never reach the cache, gives the idea only. `updown` is its block form.
"""

from typing import Any, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from ..attention.functional import attend, full_precision, merge_heads, split_heads
from ..mass import TokenMass
from .base import AttentionMixer, Settings, State
from .chosen_keys import chosen_bias, chosen_logits, largest_keys, sum_of_chosen


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
        """The state is S `(bsz, num_heads, length, k)`, see :mod:`.chosen_keys`, log(w / e^b) of
        the same shape, and V~ `(bsz, num_heads, length, head_dim)`."""
        query, key, value = self.project_heads(x)
        bias = self.key_bias(mass, padding_mask)
        if state:
            chosen, prior, cached = state
        else:
            chosen = largest_keys(query, key, bias, self.settings.size)
        logits = chosen_logits(query, key, chosen)
        own_bias = torch.zeros_like(logits) if bias is None else chosen_bias(bias, chosen)
        logits = logits + own_bias
        if not state:
            out = attend(query, key, value, key_bias=bias, dropout=self.attention_dropout)
            prior = logits.log_softmax(dim=-1) - own_bias
            return self.project_out(merge_heads(out)), (chosen, prior, value)
        beta = full_precision(self.beta).view(-1, 1, 1)
        log_weights = (logits + beta * prior).log_softmax(dim=-1)
        weight_gate, value_gate = split_heads(self.gates(x), self.num_heads).split(1, dim=-1)
        value = cached + value_gate.sigmoid() * (value - cached)
        out = sum_of_chosen(self.dropout_module(log_weights.exp()), value, chosen)
        weight_gate = full_precision(weight_gate)
        prior = torch.logaddexp(
            F.logsigmoid(weight_gate) + log_weights - own_bias,
            F.logsigmoid(-weight_gate) + prior,
        )
        return self.project_out(merge_heads(out)), (chosen, prior, value)
