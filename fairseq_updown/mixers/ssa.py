"""Attention whose keys are sampled in training."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from ..attention.functional import (
    MASKED_LOGIT,
    attend,
    full_precision,
    merge_heads,
    real_lengths,
    split_heads,
    to_blocks,
)
from ..mass import TokenMass
from .base import State
from .full import FullAttention


class StochasticAttention(FullAttention):
    """Stochastically subsampled self-attention, locally biased (SSA, arXiv 2306.01705).

    In training, the queries of a block of `settings.block_size` tokens see in one softmax

        [all keys of their block] and [`settings.size` keys drawn from the rest of the sequence],

    drawn anew in every step; linear in length. A key drawn from among c stands for all of them,
    by log c on its logit: so the expectations of the softmax's numerator and denominator are
    those of full attention. (The paper bridges that gap by a short dense training at the end.)

    At inference every query sees every key; or, with `settings.ensemble` = E > 0, each layer
    averages over E fixed draws. (The paper's ensemble averages whole models.)
    """

    default_size = 256
    has_ensemble = True
    counts_layers = True

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        bsz, length, _ = x.shape
        block_size = self.settings.block_size
        if length <= block_size or not (self.training or self.settings.ensemble):
            return super().forward(x, padding_mask, mass, state)
        lengths = real_lengths(x, padding_mask).expand(bsz)
        num_blocks, size = -(-length // block_size), min(self.settings.size, length)
        if self.training:
            shape = (1, bsz, num_blocks, size)
            uniform = torch.rand(shape, dtype=torch.float64, device=x.device)
        else:
            uniform = self.fixed_draws()[:, None, None, :size].to(x.device)
        query, key, value = self.q_proj(x) * self.scaling, self.k_proj(x), self.v_proj(x)
        bias = self.key_bias(mass, None)
        outs = [
            self.attend_to_sample(query, key, value, bias, *sample_keys(u, lengths, block_size))
            for u in uniform.expand(-1, bsz, num_blocks, -1)
        ]
        return self.project_out(torch.stack(outs).mean(dim=0)), state

    def fixed_draws(self) -> Tensor:
        """`(ensemble, size)` in [0, 1), of this layer: the same for every block of every sample."""
        generator = torch.Generator().manual_seed(self.settings.layer)
        shape = (self.settings.ensemble, self.settings.size)
        return torch.rand(shape, dtype=torch.float64, generator=generator)

    def attend_to_sample(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Optional[Tensor],
        positions: Tensor,
        counts: Tensor,
    ) -> Tensor:
        """
        Args:
            query, key, value: `(bsz, length, embed_dim)`, the queries scaled.
            bias: `(bsz, num_heads, length)`, of the keys, or None.
            positions, counts: what :func:`sample_keys` returned.

        Returns:
            `(bsz, length, embed_dim)`.
        """

        def sampled(t: Tensor) -> Tensor:
            """`(bsz, length, *)` -> `(bsz * num_blocks, block_size + size, *)`."""
            index = positions.flatten(1).unsqueeze(2).expand(-1, -1, t.size(2))
            return t.gather(1, index).view(-1, positions.size(2), t.size(2))

        log_counts = counts.to(full_precision(self.count_bias.score_slope).dtype).clamp(min=1).log()
        log_counts = log_counts.masked_fill(counts.eq(0), MASKED_LOGIT)
        key_bias = log_counts.flatten(0, 1).unsqueeze(1)
        if bias is not None:
            key_bias = key_bias + sampled(bias.transpose(1, 2)).transpose(1, 2)
        block_size = self.settings.block_size
        blocks = to_blocks(query, block_size).flatten(0, 1)
        heads = (split_heads(t, self.num_heads) for t in (blocks, sampled(key), sampled(value)))
        out = merge_heads(attend(*heads, key_bias=key_bias, dropout=self.attention_dropout))
        return out.reshape(query.size(0), -1, query.size(2))[:, : query.size(1)]


def sample_keys(uniform: Tensor, lengths: Tensor, block_size: int) -> Tuple[Tensor, Tensor]:
    """The keys that each block sees: all of its own, then a stratified sample of the others.

    Of R real tokens outside the block, in reading order, cut into s = min(R, size) parts of equal
    length (give or take one), one is drawn from each part. With s = R these are all.

    Args:
        uniform: `(bsz, num_blocks, size)` in [0, 1), which token to draw from each part.
        lengths: `(bsz,)` long, real tokens of each row, which stand first.
        block_size: tokens per block.

    Returns:
        positions: `(bsz, num_blocks, block_size + size)` long, from 0 to each row's length - 1.
        counts: likewise, how many keys it was drawn from: 1 for its own; 0 where there is none.
    """
    _, num_blocks, size = uniform.shape
    device = uniform.device
    starts = torch.arange(num_blocks, device=device).unsqueeze(1) * block_size
    own = starts + torch.arange(block_size, device=device)
    lengths = lengths[:, None, None]
    num_own = (lengths - starts).clamp(min=0, max=block_size)
    num_others = lengths - num_own
    part = torch.arange(size, device=device)
    num_parts = num_others.clamp(min=1, max=size)
    first = part * num_others // num_parts
    counts = ((part + 1) * num_others // num_parts - first) * (part < num_parts)
    drawn = first + (uniform * counts).long()
    drawn = drawn + num_own * (drawn >= starts)  # skips the block's own
    positions = torch.cat([own.expand(lengths.size(0), -1, -1), drawn], dim=2)
    counts = torch.cat([(own < lengths).long(), counts], dim=2)
    return positions.masked_fill(counts.eq(0), 0), counts
