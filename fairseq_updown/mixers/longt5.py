"""Transient global attention: a local window and summaries of the whole sequence."""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.functional import (
    MASKED_LOGIT,
    attend,
    bias_in_channels,
    full_precision,
    merge_heads,
    split_heads,
    to_blocks,
)
from ..mass import TokenMass
from .base import AttentionMixer, Settings, State

_EPSILON = 1e-6  # T5's


class TransientGlobalAttention(AttentionMixer):
    """LongT5's TGlobal (Guo et al. 2021, arXiv 2112.07916, "Transient Global Attention"). In
    one softmax, with the same projections for both kinds of keys, token i sees

    - the tokens j with |i - j| <= r, r being `--updown-block-size` (the paper: 127);
    - all global tokens: g_m = T5LayerNorm(sum of the tokens of block m), made anew in every layer
      from blocks of `settings.size` tokens; the last block may be shorter (the authors' code adds
      what fills no block to the one before it). T5's layer norm only rescales:
      t -> scale * t / sqrt(mean(t^2) + 1e-6).

    T5's relative position biases are left out: the embeddings have positions.

    Cost: O(n (r + n / g)), g tokens a global one: not linear, but quadratic with a small factor. Of
    tokens with counts, the local keys have the count bias and the sums are weighted; global tokens
    have no bias.
    """

    default_size = 16

    def __init__(self, embed_dim: int, num_heads: int, settings: Settings, **kwargs: Any):
        super().__init__(embed_dim, num_heads, settings, **kwargs)
        self.global_scale = nn.Parameter(torch.ones(embed_dim))

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        bsz, length, _ = x.shape
        radius = min(self.settings.block_size, length)
        if padding_mask is None:
            padding_mask = torch.zeros(bsz, length, dtype=torch.bool, device=x.device)
        bias = self.key_bias(mass, padding_mask)
        assert bias is not None
        global_bias = self.key_bias(None, padding_mask[:, :: self.settings.size])
        assert global_bias is not None
        bias = torch.cat([bias, global_bias.expand(-1, bias.size(1), -1)], dim=2)
        seen = torch.cat([x, self.global_tokens(x, padding_mask, mass)], dim=1)

        query = to_blocks(self.q_proj(x) * self.scaling, radius).flatten(0, 1)
        query = split_heads(query, self.num_heads)
        key, value = (
            split_heads(gather_keys(t, length, radius), self.num_heads)
            for t in (self.k_proj(seen), self.v_proj(seen))
        )
        bias = gather_keys(bias.transpose(1, 2), length, radius, MASKED_LOGIT).transpose(1, 2)
        num_globals = seen.size(1) - length
        mask = band(radius, key.size(2) - num_globals, x.device)
        mask = F.pad(mask, (0, num_globals), value=True)
        # In the channels, whether it is learned or not: the mask stays one for all blocks.
        extended = bias_in_channels(query, key, value, bias)
        out = attend(*extended, mask=mask, dropout=self.attention_dropout)
        out = merge_heads(out[..., : self.head_dim]).reshape(bsz, -1, x.size(2))
        return self.project_out(out[:, :length]), None

    def global_tokens(self, x: Tensor, padding_mask: Tensor, mass: Optional[TokenMass]) -> Tensor:
        """`(bsz, num_globals, embed_dim)`, see the class; of a block of pads 0."""
        tokens = full_precision(x).masked_fill(padding_mask.unsqueeze(-1), 0.0)
        if mass is not None:
            tokens = tokens * mass.counts.unsqueeze(-1)
        total = to_blocks(tokens, self.settings.size).sum(dim=2)
        total = total * torch.rsqrt(total.square().mean(dim=-1, keepdim=True) + _EPSILON)
        return (total * self.global_scale).to(x.dtype)


def gather_keys(x: Tensor, length: int, radius: int, fill: float = 0.0) -> Tensor:
    """What each block of `radius` tokens may see, side by side.

    Args:
        x: `(bsz, length + num_globals, channels)`: tokens, then global tokens.
        fill: stands where there is no token.

    Returns:
        `(bsz * num_blocks, 3 * radius + num_globals, channels)`: the block before, the block, the
        block after (just the block if there is only one), the global tokens.
    """
    blocks = to_blocks(x[:, :length], radius, fill)
    num_blocks = blocks.size(1)
    parts = [blocks]
    if num_blocks > 1:
        around = F.pad(blocks, (0, 0, 0, 0, 1, 1), value=fill)
        parts = [around[:, :-2], blocks, around[:, 2:]]
    parts.append(x[:, length:].unsqueeze(1).expand(-1, num_blocks, -1, -1))
    return torch.cat(parts, dim=2).flatten(0, 1)


def band(radius: int, width: int, device: torch.device) -> Tensor:
    """`(radius, width)` bool, True where |i - j| <= radius; the queries' block is amid the keys."""
    i = torch.arange(radius, device=device).unsqueeze(1) + (width - radius) // 2
    j = torch.arange(width, device=device)
    return (i - j).abs() <= radius
