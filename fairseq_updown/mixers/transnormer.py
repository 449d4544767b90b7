"""TransNormer: blocks in the lower layers, normalized linear attention in the upper ones."""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.encoder import SlotAttention
from ..attention.functional import full_precision, merge_heads, split_heads
from ..mass import TokenMass
from .base import Mixer, Settings, State

_EPS = 1e-6  # of the norm


class TransnormerAttention(SlotAttention, Mixer):  # type: ignore[misc]
    """DiagAttention in the first half of the layers, NormAttention in the others.

    "The Devil in Linear Transformer", arXiv:2210.10340, section 4, variant T2: DiagAttention is
    softmax attention within blocks of `--updown-block-size` tokens, NormAttention is
    RMSNorm(phi(Q) (phi(K)^T V)) with phi = 1 + elu. As in the authors' code the norm is of all
    heads side by side; its gain would be one with the output projection. Linear in length.

    The key features of a token of count c count c times, those of a pad not at all. NormAttention
    has no weights to drop: dropout of attention is for the blocks.
    """

    counts_layers = True

    def __init__(self, embed_dim: int, num_heads: int, settings: Settings, **kwargs: Any):
        super().__init__(embed_dim, num_heads, block_size=settings.block_size, **kwargs)
        self.settings = settings

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        if self.settings.layer < self.settings.num_layers // 2:
            return super().forward(x, padding_mask, mass, None)
        query, key, value = (
            split_heads(full_precision(proj(x)), self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = 1 + F.elu(query), 1 + F.elu(key)
        log_counts = self.key_bias(mass, padding_mask)
        if log_counts is not None:
            key = key * log_counts.exp().unsqueeze(-1)
        with torch.autocast(x.device.type, enabled=False):
            out = merge_heads(query @ (key.transpose(-1, -2) @ value))
            out = out * (out.square().mean(dim=-1, keepdim=True) + _EPS).rsqrt()
        return self.project_out(out.to(x.dtype)), None
