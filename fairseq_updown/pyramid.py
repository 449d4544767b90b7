"""The pyramid's own pooling: the sequence itself gets shorter between two stages."""

import math
from typing import Iterable, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention.functional import full_precision, keep_in_graph, length_mask, weight_and_bias
from .attention.pooling import (
    POOLINGS,
    Pooling,
    PoolingFunction,
    RowSizes,
    combine,
    sum_by_slot,
    tie_tolerance,
)
from .mass import TokenMass


class RowLengths(NamedTuple):
    """How many real tokens each row has; they stand first.

    Attributes:
        numbers: known to the host, which decides by them how large tensors are.
        tensor: the same, `(bsz,)` long.
    """

    numbers: Tuple[int, ...]
    tensor: Tensor

    @classmethod
    def of(cls, numbers: Iterable[int], device: torch.device) -> "RowLengths":
        numbers = tuple(numbers)
        return cls(numbers, on_device(numbers, device))

    @property
    def longest(self) -> int:
        """At least 1."""
        return max(1, *self.numbers)

    def all_are(self, length: int) -> bool:
        """Whether every row has `length` tokens."""
        return all(number == length for number in self.numbers)

    def padding_mask(self, size: int) -> Optional[Tensor]:
        """`(bsz, size)` bool, True at pads; None if there are none."""
        return None if self.all_are(size) else length_mask(self.tensor, size)


def on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """A long tensor of numbers that the host knows; neither side waits for the other."""
    return torch.tensor(numbers, pin_memory=device.type == "cuda").to(device, non_blocking=True)


class PooledSequence(NamedTuple):
    """A sequence after :class:`SequencePooling`.

    Attributes:
        x: `(bsz, new_length, embed_dim)`.
        lengths: real tokens of each row.
        mass: counts and scores of the new tokens.
        assignment: `(bsz, length)` long, the new token that each old one went to; at pads any.
        weights: `(bsz, length)`, each old token's share of its new token.
    """

    x: Tensor
    lengths: RowLengths
    mass: TokenMass
    assignment: Tensor
    weights: Tensor


def pool_by_scores(
    x: Tensor, mass: TokenMass, size: int, pooling: PoolingFunction, base: float
) -> PooledSequence:
    """Pools what was pooled before once more, by the scores that it has.

    Args:
        x: `(bsz, length, embed_dim)`, all real, length > 0.
        mass: of it.
        size: the new length, if x is longer.
        pooling, base: see :class:`SequencePooling`.
    """
    length = x.size(1)
    size = min(size, length)
    sizes = RowSizes(None, size, size, length / size)
    pooled = pooling(mass.scores, sizes, base, tie_tolerance(x.dtype))
    weights = pooled.shares()
    counts = sum_by_slot(mass.counts, pooled.assignment, size, sizes.pads)
    return PooledSequence(
        combine(x, pooled.assignment, weights, size, sizes.pads),
        RowLengths.of([size] * x.size(0), x.device),
        TokenMass.of(counts, pooled.scores),
        pooled.assignment,
        weights,
    )


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
        self.scorer = nn.Linear(embed_dim, 1)

    def target(self, length: int) -> int:
        """The most tokens that a sequence of `length` is pooled to."""
        return max(self.min_length, math.ceil(length / self.rate))

    def applies(self, length: int) -> bool:
        """Whether a sequence of `length` tokens gets any shorter."""
        return self.target(length) < length

    def forward(self, x: Tensor, lengths: RowLengths, mass: Optional[TokenMass]) -> PooledSequence:
        """
        Args:
            x: `(bsz, length, embed_dim)`, real tokens first.
            lengths: real tokens of each row.
            mass: counts and scores if `x` was pooled before, None if each token stands for itself.
        """
        with torch.autocast(x.device.type, enabled=False):
            normed = F.layer_norm(full_precision(x), x.shape[-1:])
            scores = F.linear(normed, *weight_and_bias(self.scorer)).squeeze(-1).sigmoid()
        width = x.size(1)
        targets = [self.target(number) for number in lengths.numbers]
        new_lengths = RowLengths.of(map(min, lengths.numbers, targets), x.device)
        sizes = RowSizes(
            None if lengths.all_are(width) else lengths.tensor,
            targets[0] if len(set(targets)) == 1 else on_device(targets, x.device),
            new_lengths.longest,
            max(n / target for n, target in zip(lengths.numbers, targets)),
        )
        pooled = self.pooling(scores, sizes, self.pooling_base, tie_tolerance(x.dtype))
        weights = pooled.shares()
        x = combine(x, pooled.assignment, weights, sizes.num_slots, sizes.pads)
        if not weights.requires_grad:  # of `mean`, whose scores nobody need look at
            x = keep_in_graph(x, self.parameters())
        return PooledSequence(
            x,
            new_lengths,
            self.add_up(pooled, sizes, scores, mass),
            pooled.assignment,
            weights,
        )

    @staticmethod
    def add_up(
        pooled: Pooling, sizes: RowSizes, scores: Tensor, mass: Optional[TokenMass]
    ) -> TokenMass:
        """The new tokens' mass; scores `(bsz, length)` are the old ones'."""
        width, num_slots, new_scores = scores.size(1), sizes.num_slots, pooled.scores
        if mass is None:
            padding_mask = sizes.padding_mask(width)
            counts = torch.ones_like(scores)
            counts = counts if padding_mask is None else counts.masked_fill(padding_mask, 0.0)
        else:
            counts = mass.counts
            if sizes.lengths is not None:
                # A row that was short enough is left alone, its scores too.
                untouched = (sizes.lengths <= sizes.targets).unsqueeze(1)
                new_scores = torch.where(untouched, mass.scores[:, :num_slots], new_scores)
        return TokenMass.of(
            sum_by_slot(counts, pooled.assignment, num_slots, sizes.pads), new_scores
        )
