"""Pooling operators: which slot each token goes to, and with what weight.

Every operator maps the N real tokens of a row to min(N, target) slots and partitions the tokens:
each belongs to exactly one slot, of which it is a share. An operator therefore only returns the
slot and the log-weight of each token; :func:`combine` builds the slots.

To add an operator, write a function with the signature of :func:`tournament` and name it in
`POOLINGS`. If a slot is its leader alone, its :class:`Pooling` is `hard`.
"""

import math
from typing import Callable, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .functional import HALVES, full_precision, length_mask


class Pooling(NamedTuple):
    """How the tokens of each row share the row's slots.

    Attributes:
        assignment: `(rows, length)` long, the slot of each token; `num_slots` at pads. Slots stand
            in reading order.
        log_weights: `(rows, length)`, log of each token's share of its slot; 0 at pads.
        weights: `(rows, length)`, the shares; 1 at pads.
        leader: `(rows, length)` bool, the one token of a slot that gives it its place in reading
            order.
        scores: `(rows, num_slots)` in (0, 1); 0 for empty slots.
        hard: a slot is its leader alone; the weights are those of its gradient.
    """

    assignment: Tensor
    log_weights: Tensor
    weights: Tensor
    leader: Tensor
    scores: Tensor
    hard: bool = False

    def shares(self) -> Tensor:
        """`(rows, length)`, what a slot is made of; see :func:`combine`."""
        return straight_through(self.weights, self.leader) if self.hard else self.weights


class RowSizes(NamedTuple):
    """How many tokens the rows have and how many slots they want, as far as possible as numbers
    that the host knows.

    Attributes:
        lengths: `(rows,)` long, real tokens of each row, which stand first; None if all rows are
            full.
        targets: slots wanted, >= 1: `(rows,)` long, or the same number for all.
        num_slots: width of the result, >= every min(length, target).
        reduction: >= every length / target.
    """

    lengths: Optional[Tensor]
    targets: Union[int, Tensor]
    num_slots: int
    reduction: float

    @property
    def pads(self) -> bool:
        """Whether a row may have any."""
        return self.lengths is not None

    def padding_mask(self, width: int) -> Optional[Tensor]:
        """`(rows, width)` bool, True at pads; None if all rows are full."""
        return None if self.lengths is None else length_mask(self.lengths, width)

    def kept(self, width: int) -> Union[int, Tensor]:
        """min(length, target): `(rows, 1)`, or a number if it is the same for all."""
        if self.lengths is None:
            targets = self.targets
            if isinstance(targets, int):
                return min(width, targets)
            return targets.clamp(max=width).unsqueeze(1)
        if isinstance(self.targets, int):
            return self.lengths.clamp(max=self.targets).unsqueeze(1)
        return torch.minimum(self.lengths, self.targets).unsqueeze(1)

    def as_tensors(self, scores: Tensor) -> Tuple[Tensor, Tensor]:
        """lengths and targets, `(rows,)` long."""
        rows, width = scores.shape
        lengths, targets = (
            torch.full((rows,), number, device=scores.device)
            if not isinstance(number, Tensor)
            else number
            for number in (width if self.lengths is None else self.lengths, self.targets)
        )
        return lengths, targets


PoolingFunction = Callable[[Tensor, RowSizes, float, float], Pooling]

# Runs of scores that hang together by less than the tolerance are ties only while the whole run
# spans no more than this many tolerances: a dense crowd of different scores is no tie.
_WIDEST_TIE = 4.0

# e to this power, times any number of tokens, is far from the end of float32.
_LARGEST_EXPONENT = 64.0


def tournament(scores: Tensor, sizes: RowSizes, base: float, tolerance: float = 0.0) -> Pooling:
    """Trainable top-k by successive halving (DeepPyramidion, arXiv 2009.05169, section 4).

    While a row has n > target items: T = max(target, ceil(n / 2)); sorted by score, the best
    2T - n items pass, the rest pair best with worst; a pair (a, b) becomes one item
    omega a + (1 - omega) b with omega = sigmoid(base^s_a - base^s_b). Ties break by position.

    Args:
        scores: `(rows, length)` in (0, 1), float32 or float64; pads are ignored.
        sizes: of the rows.
        base: see above; the larger, the closer to winner takes all.
        tolerance: scores no further apart are ties, see :func:`rank_by_score`.
    """
    return _knock_out(scores, sizes, base, tolerance, False)


def seeded(scores: Tensor, sizes: RowSizes, base: float, tolerance: float = 0.0) -> Pooling:
    """The tournament with one sort in place of one a round.

    The best r = min(N, target) items are seeds, one a slot; the others are dealt to them in snake
    order: of rank k, with i = k mod 2r, an item goes to the seed of rank min(i, 2r - 1 - i). A
    slot's shares are the softmax of its items' base^s, its score is theirs by these shares.

    Where one round is enough, N <= 2r, it is the tournament. Ties break by position. Arguments as
    in :func:`tournament`.
    """
    rows, width = scores.shape
    padding_mask, kept, num_slots = sizes.padding_mask(width), sizes.kept(width), sizes.num_slots
    hidden = scores.detach()
    if padding_mask is not None:
        hidden = hidden.masked_fill(padding_mask, -1.0)
    order = rank_by_score(hidden, tolerance)
    rank = torch.arange(width, device=scores.device)
    leads = (rank < kept).expand(rows, width)
    leader = leads.new_empty(rows, width).scatter_(1, order, leads)
    cycle = 2 * (max(1, kept) if isinstance(kept, int) else kept.clamp(min=1))
    turn = rank % cycle
    seed = order.gather(1, torch.minimum(turn, cycle - 1 - turn).expand(rows, width))
    slot_of_seed = (leader.cumsum(dim=1) - 1).gather(1, seed)
    assignment = torch.empty_like(order).scatter_(1, order, slot_of_seed)
    if padding_mask is not None:
        assignment = assignment.masked_fill(padding_mask, num_slots)
    strength = base**scores
    if base > _LARGEST_EXPONENT:
        strength = strength - _largest_of_slot(strength.detach(), assignment, num_slots)
    exponential = strength.exp()
    sums = exponential.new_zeros(rows, num_slots + 1).scatter_add(1, assignment, exponential)
    log_weights = strength - sums.log().gather(1, assignment)
    if padding_mask is not None:
        log_weights = log_weights.masked_fill(padding_mask, 0.0)
    weights = log_weights.exp()
    slot_scores = sum_by_slot(weights * scores, assignment, num_slots, sizes.pads)
    return Pooling(assignment, log_weights, weights, leader, slot_scores)


def topk(scores: Tensor, sizes: RowSizes, base: float, tolerance: float = 0.0) -> Pooling:
    """The tournament with winner takes all: each slot is one of the top `target` tokens.

    The log-weights stay those of the soft tournament: they carry the straight-through gradient.
    """
    return _knock_out(scores, sizes, base, tolerance, True)


def mean(scores: Tensor, sizes: RowSizes, base: float, tolerance: float = 0.0) -> Pooling:
    """Contiguous groups of near-equal size with equal weights; `scores` only ride along."""
    del base, tolerance
    (lengths, targets), num_slots = sizes.as_tensors(scores), sizes.num_slots
    position = torch.arange(scores.size(1), device=scores.device)
    valid = ~length_mask(lengths, scores.size(1))
    used = torch.minimum(lengths, targets).clamp(min=1).unsqueeze(1)
    group = position * used // lengths.clamp(min=1).unsqueeze(1)
    assignment = group.masked_fill(~valid, num_slots)
    first = F.pad(assignment[:, 1:] != assignment[:, :-1], (1, 0), value=True)
    members = sum_by_slot(valid.to(scores.dtype), assignment, num_slots)
    sums = sum_by_slot(scores.masked_fill(~valid, 0.0), assignment, num_slots)
    log_weights = -F.pad(members, (0, 1), value=1.0).clamp(min=1.0).log().gather(1, assignment)
    scores = sums / members.clamp(min=1.0)
    return Pooling(assignment, log_weights, log_weights.exp(), first & valid, scores)


POOLINGS: "dict[str, PoolingFunction]" = {
    "seeded": seeded,
    "tournament": tournament,
    "topk": topk,
    "mean": mean,
}


def tie_tolerance(dtype: torch.dtype) -> float:
    """How far apart the scores of one token, seen twice, can be by rounding alone.

    Args:
        dtype: of the vectors that are scored; the scores themselves are at least float32.
    """
    eps = torch.finfo(dtype).eps
    return eps / 2 if dtype in HALVES else 32 * eps


def rank_by_score(scores: Tensor, tolerance: float) -> Tensor:
    """The order of falling scores in which ties go by position.

    Ties are neighbours in that order which are at most `tolerance` apart, and runs of such
    neighbours up to `_WIDEST_TIE` tolerances wide: what decides between tokens that are the same
    but for rounding must not be the last bit of a matrix product, which differs with the
    processor, the batch and the length.

    Args:
        scores: `(rows, length)`.

    Returns:
        `(rows, length)` long, the item of each rank.
    """
    ranked, order = scores.sort(dim=1, descending=True, stable=True)
    gaps = F.pad(ranked[:, :-1] - ranked[:, 1:], (1, 0), value=math.inf)
    starts = gaps > tolerance
    run = starts.cumsum(dim=1)
    # A run is as wide as the gaps within it together.
    gaps = gaps.masked_fill(starts, 0.0)
    widths = gaps.new_zeros(gaps.size(0), gaps.size(1) + 1).scatter_add(1, run, gaps)
    too_wide = (widths > _WIDEST_TIE * tolerance).gather(1, run)
    run = (starts | too_wide).cumsum(dim=1)
    # In the order of (run, position); the runs themselves stay where they are.
    by_run = torch.add(order, run, alpha=scores.size(1)).sort(dim=1).values
    return torch.sub(by_run, run, alpha=scores.size(1))


def sum_by_slot(values: Tensor, assignment: Tensor, num_slots: int, pads: bool = True) -> Tensor:
    """Sums `values` `(rows, length)` over the tokens of each slot: `(rows, num_slots)`.

    Args:
        pads: whether there may be any, in a slot `num_slots` that is cut off again.
    """
    sums = values.new_zeros(values.size(0), num_slots + pads)
    return sums.scatter_add(1, assignment, values)[:, :num_slots]


def _largest_of_slot(values: Tensor, assignment: Tensor, num_slots: int) -> Tensor:
    """For each item the largest of `values` `(rows, length)` in its slot."""
    largest = values.new_full((values.size(0), num_slots + 1), -math.inf)
    return largest.scatter_reduce(1, assignment, values, "amax").gather(1, assignment)


def straight_through(weights: Tensor, leader: Tensor) -> Tensor:
    """Forward the leader takes all; backward the gradient of the soft weights."""
    return leader.to(weights.dtype) + (weights - weights.detach())


def combine(
    x: Tensor, assignment: Tensor, weights: Tensor, num_slots: int, pads: bool = True
) -> Tensor:
    """Slots as weighted sums of their tokens, added up in full precision; linear in the length,
    whatever `num_slots` is.

    Args:
        x: `(rows, length, d)`. assignment, weights: `(rows, length)`.
        pads: as in :func:`sum_by_slot`.

    Returns:
        `(rows, num_slots, d)`, zeros for empty slots.
    """
    rows, width = x.size(0), num_slots + pads
    if rows > 1:
        first_slot = torch.arange(rows, device=x.device) * width
        assignment = assignment + first_slot.unsqueeze(1)
    weighted = full_precision(x) * full_precision(weights).unsqueeze(-1)
    slots = weighted.new_zeros(rows * width, x.size(2))
    slots = slots.index_add(0, assignment.flatten(), weighted.flatten(0, 1))
    return slots.to(x.dtype).view(rows, width, -1)[:, :num_slots]


def _knock_out(
    scores: Tensor, sizes: RowSizes, base: float, tolerance: float, winner_takes_all: bool
) -> Pooling:
    (lengths, targets), num_slots = sizes.as_tensors(scores), sizes.num_slots
    rows, width = scores.shape
    position = torch.arange(width, device=scores.device).expand(rows, width)
    valid = ~length_mask(lengths, width)
    # Items are the survivors in reading order; `item` says which one a token has become part of.
    item, log_weights = position, torch.zeros_like(scores)
    item_scores, item_leader = scores, position
    remaining, size = lengths, width
    # k rounds leave ceil(n / 2^k); a row that has its target passes through the rest as it is.
    for _ in range(math.ceil(math.log2(max(1.0, sizes.reduction)))):
        survivors = torch.minimum(remaining, torch.maximum(targets, (remaining + 1) // 2))
        size = min(size, max(num_slots, (size + 1) // 2))
        new_item, log_share, item_scores, item_leader = _one_round(
            item_scores, item_leader, remaining, survivors, size, base, tolerance, winner_takes_all
        )
        log_weights = log_weights + log_share.gather(1, item)
        item, remaining = new_item.gather(1, item), survivors
    item_scores = F.pad(item_scores, (0, max(0, num_slots - size)))[:, :num_slots]
    leader = torch.zeros_like(valid)
    item_leader = item_leader[:, :num_slots]
    is_item = ~length_mask(remaining, item_leader.size(1))
    leader = leader.scatter(1, item_leader, is_item)
    log_weights = log_weights.masked_fill(~valid, 0.0)
    return Pooling(
        item.masked_fill(~valid, num_slots),
        log_weights,
        log_weights.exp(),
        leader,
        item_scores.masked_fill(length_mask(remaining, num_slots), 0.0),
        hard=winner_takes_all,
    )


def _one_round(
    scores: Tensor,
    leader: Tensor,
    remaining: Tensor,
    survivors: Tensor,
    size: int,
    base: float,
    tolerance: float,
    winner_takes_all: bool,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """One round of a knock-out. Items come and go in reading order.

    Returns:
        For each old item its new index and the log of its share of it, `(rows, old size)`; for
        each new item its score and its leading token, `(rows, size)`.
    """
    n, t = remaining.unsqueeze(1), survivors.unsqueeze(1)
    is_item = ~length_mask(remaining, scores.size(1))
    order = rank_by_score(scores.detach().masked_fill(~is_item, -1.0), tolerance)
    ranked = scores.gather(1, order)
    rank = torch.arange(scores.size(1), device=scores.device).expand_as(order)
    unpaired = 2 * t - n
    paired = (rank >= unpaired) & (rank < n)
    partner = torch.where(paired, unpaired + n - 1 - rank, rank)
    strength = base**ranked
    margin = strength - strength.gather(1, partner)
    log_share = F.logsigmoid(margin).masked_fill(~paired, 0.0)
    if winner_takes_all:
        merged = ranked
    else:
        shared = ranked * log_share.exp()
        merged = torch.where(paired, shared + shared.gather(1, partner), ranked)
    # The better of each pair stands at rank < t and leads; then back to reading order.
    ranked_leader = leader.gather(1, order)
    behind_all = torch.iinfo(leader.dtype).max
    reading_order = ranked_leader.masked_fill(rank >= t, behind_all).argsort(dim=1)
    index_of_rank = torch.empty_like(order).scatter_(1, reading_order, rank)
    new_index = index_of_rank.gather(1, torch.minimum(rank, partner)).clamp(max=size - 1)
    kept = reading_order[:, :size]
    return (
        torch.empty_like(order).scatter_(1, order, new_index),
        torch.zeros_like(log_share).scatter(1, order, log_share),
        merged.gather(1, kept),
        ranked_leader.gather(1, kept),
    )
