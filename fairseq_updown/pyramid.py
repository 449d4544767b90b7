"""The pyramid's own pooling: the sequence itself gets shorter between two stages."""

from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention.functional import full_precision, length_mask
from .attention.pooling import (
    POOLINGS,
    combine,
    straight_through,
    sum_by_slot,
    tie_tolerance,
)
from .mass import TokenMass


class PooledSequence(NamedTuple):
    """A sequence after :class:`SequencePooling`.

    Attributes:
        x: `(bsz, new_length, embed_dim)`.
        lengths: `(bsz,)` long.
        mass: counts and scores of the new tokens.
        assignment: `(bsz, length)` long, the new token that each old one went to; at pads any.
        weights: `(bsz, length)`, each old token's share of its new token.
    """

    x: Tensor
    lengths: Tensor
    mass: TokenMass
    assignment: Tensor
    weights: Tensor


class SequencePooling(nn.Module):
    """One tournament over the whole sequence, with a linear scorer of its own.

    N -> min(N, max(`min_length`, ceil(N / `rate`))) tokens, per sample and in reading order: a rich
    passage keeps many, boilerplate few.

    Args:
        embed_dim: size of the tokens.
        rate: length divisor, >= 1; infinity pools to `min_length`.
        min_length: never pool below this.
        pooling, pooling_base: see :class:`BlockPooling`.
    """

    def __init__(
        self, embed_dim: int, *, rate: float, min_length: int, pooling: str, pooling_base: float
    ):
        super().__init__()
        self.rate = rate
        self.min_length = min_length
        self.pooling = POOLINGS[pooling]
        self.pooling_base = pooling_base
        self.hard = pooling == "topk"
        self.scorer = nn.Linear(embed_dim, 1)

    def applies(self, length: int) -> bool:
        """Whether a sequence of `length` tokens gets any shorter."""
        return length > self.min_length and self.rate > 1

    def forward(self, x: Tensor, lengths: Tensor, mass: Optional[TokenMass]) -> PooledSequence:
        """
        Args:
            x: `(bsz, length, embed_dim)`, real tokens first.
            lengths: `(bsz,)` long.
            mass: counts and scores if `x` was pooled before, None if each token stands for itself.
        """
        with torch.autocast(x.device.type, enabled=False):
            normed = F.layer_norm(full_precision(x), x.shape[-1:])
            weight, bias = full_precision(self.scorer.weight), full_precision(self.scorer.bias)
            scores = F.linear(normed, weight, bias).squeeze(-1).sigmoid()
        targets = (lengths / self.rate).ceil().long().clamp(min=self.min_length)
        num_slots = int(torch.minimum(lengths, targets).max())
        tolerance = tie_tolerance(x.dtype)
        pooled = self.pooling(scores, lengths, targets, num_slots, self.pooling_base, tolerance)
        weights = pooled.log_weights.exp()
        if self.hard:
            weights = straight_through(pooled.log_weights, pooled.leader)
        counts, new_scores = (~length_mask(lengths, x.size(1))).to(scores), pooled.scores
        if mass is not None:
            # A row that was short enough is left alone, its scores too.
            untouched = (lengths <= targets).unsqueeze(1)
            new_scores = torch.where(untouched, mass.scores[:, :num_slots], new_scores)
            counts = mass.counts
        new_mass = TokenMass(sum_by_slot(counts, pooled.assignment, num_slots), new_scores)
        return PooledSequence(
            combine(x, pooled.assignment, weights, num_slots),
            torch.minimum(lengths, targets),
            new_mass,
            pooled.assignment,
            weights,
        )
