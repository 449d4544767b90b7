"""Luna: every token sees a short sequence that has seen every token."""

from typing import Any, Optional, Tuple

import torch
from fairseq.modules import LayerNorm
from torch import Tensor, nn

from ..attention.functional import attend, keep_in_graph, merge_heads, split_heads
from ..mass import TokenMass
from .base import AttentionMixer, Settings, State, projection


class LunaAttention(AttentionMixer):
    """Pack, then unpack: Y_P = Attn(P, X), Y = Attn(X, Y_P); linear in length.

    "Luna: Linear Unified Nested Attention", arXiv:2106.01540, section 3.1, with W_K = W_V in each
    of the two softmax attentions, as the paper shares them. P has `settings.size` vectors: in the
    first layer of a stage learned ones (they are position embeddings, and get no others), later
    LayerNorm(Y_P + P) of the layer before, as in the paper's layer. That norm is taken where P is
    read, so that none is left unread after the last layer, and the learned P passes it too.
    Tokens with mass weigh by it in the packing.
    """

    default_size = 16

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
        super().__init__(
            embed_dim, num_heads, settings, q_noise=q_noise, qn_block_size=qn_block_size, **kwargs
        )
        del self.k_proj, self.v_proj  # each attention projects its context once

        noise = (q_noise, qn_block_size)
        self.context_proj = projection(embed_dim, embed_dim, *noise, gain=2**-0.5)
        self.pack_q_proj = projection(embed_dim, embed_dim, *noise, gain=2**-0.5)
        self.pack_context_proj = projection(embed_dim, embed_dim, *noise, gain=2**-0.5)
        self.packed_layer_norm = LayerNorm(embed_dim)
        self.initial = nn.Parameter(torch.randn(settings.size, embed_dim) * embed_dim**-0.5)

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        """The state is Y_P + P, `(bsz, size, embed_dim)`."""
        before = self.packed_layer_norm(state[0] if state else self.initial)
        before = before.expand(x.size(0), -1, -1)
        bias = self.key_bias(mass, padding_mask)
        packed = self.attend_to(self.pack_q_proj(before), self.pack_context_proj(x), bias)
        out = self.attend_to(self.q_proj(x), self.context_proj(packed), None)
        return keep_in_graph(self.project_out(out), [self.initial]), (packed + before,)

    def attend_to(self, query: Tensor, context: Tensor, bias: Optional[Tensor]) -> Tensor:
        """query `(bsz, L, embed_dim)`, context `(bsz, S, embed_dim)` -> `(bsz, L, embed_dim)`."""
        query = split_heads(query * self.scaling, self.num_heads)
        context = split_heads(context, self.num_heads)
        dropout = self.attention_dropout
        return merge_heads(attend(query, context, context, key_bias=bias, dropout=dropout))
