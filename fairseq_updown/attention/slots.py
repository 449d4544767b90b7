"""Up: compressing blocks of tokens into weighted slots that are carried from layer to layer."""

from typing import Iterator, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from ..mass import TokenMass
from .functional import MASKED_LOGIT, full_precision
from .pooling import POOLINGS, RowSizes, straight_through, tie_tolerance


class BlockLengths(NamedTuple):
    """Of blocks that are not all full.

    Attributes:
        lengths: `(bsz, num_blocks)` long, real tokens of each block; they stand first.
        share: `(bsz, num_blocks, 1, block_size)`, of each token in its block's mean: 1 / length, 0
            at pads.
    """

    lengths: Tensor
    share: Tensor


class PooledBlocks(NamedTuple):
    """The compressed attention information that one layer hands to the next.

    `block_size` tokens of a block share its `num_slots` slots; a slot means the same tokens in
    every layer of a stage, only its weights and its state are refreshed.

    Attributes:
        lengths: of the blocks; None if all are full.
        log_weights: `(bsz, num_blocks, num_slots, block_size)`, log of each token's share of each
            slot; about `MASKED_LOGIT` in all slots but its own, any in slots that have no token.
        leader: `(bsz, num_blocks, num_slots, block_size)` bool, see :class:`~.pooling.Pooling`;
            None where the pooling is soft.
        single: `(bsz, num_blocks, num_slots, 1)` bool, the slot has but one token.
        slots: `(bsz, num_blocks, num_slots, embed_dim)`, the slots' states Z.
        mass: counts and scores of the slots, `(bsz, num_blocks * num_slots)`.
    """

    lengths: Optional[BlockLengths]
    log_weights: Tensor
    leader: Optional[Tensor]
    single: Tensor
    slots: Tensor
    mass: TokenMass


class EarlierSlots(NamedTuple):
    """What the segments of a source that were encoded before left in one layer's slots.

    Attributes:
        slots: `(bsz, num_slots, embed_dim)`.
        mass: their counts and scores.
    """

    slots: Tensor
    mass: TokenMass


class BlockPooling(nn.Module):
    """Compresses each block into `num_slots` slots (Up), anew or from the layer before.

    With x the layer's attention input, r_i = mean over the block's queries and heads of the scaled
    logit of key i, plus u.x_i:

    - anchor (no state yet): the pooling operator, scored by sigmoid(r), assigns tokens to slots;
    - later layers keep the assignment and re-weight it, lambda_l = log_softmax over a slot's tokens
      of (lambda_{l-1} + eta r);
    - the candidate Z^ = sum exp(lambda_l) x passes the gate Z_l = g Z^ + (1 - g) Z_{l-1},
      g = sigmoid(w . [Z^; Z_{l-1}] + c) elementwise, g = 1 for a slot of one token.

    Args:
        embed_dim: size of the tokens and slots.
        num_slots: slots per block, r.
        pooling: name of the operator, a key of `POOLINGS`.
        pooling_base: the tournament's base.
        gate: False: Z_l = Z^, nothing but the weights is carried.
        reweight: False: lambda_l = lambda_{l-1}.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        num_slots: int,
        pooling: str,
        pooling_base: float,
        gate: bool,
        reweight: bool,
    ):
        super().__init__()
        self.num_slots = num_slots
        self.pooling = POOLINGS[pooling]
        self.pooling_base = pooling_base
        self.scorer = nn.Parameter(torch.zeros(embed_dim))
        self.reweight = nn.Parameter(torch.zeros(1)) if reweight else None
        # Open at the start: g = sigmoid(2) = 0.88 of the fresh candidate.
        self.gate_weight = nn.Parameter(torch.zeros(2, embed_dim)) if gate else None
        self.gate_bias = nn.Parameter(torch.full((embed_dim,), 2.0)) if gate else None

    def forward(
        self,
        x: Tensor,
        mean_logit: Optional[Tuple[Tensor, Tensor]],
        lengths: Optional[BlockLengths],
        counts: Optional[Tensor],
        state: Optional[PooledBlocks],
    ) -> PooledBlocks:
        """
        Args:
            x: `(bsz, num_blocks, block_size, embed_dim)`.
            mean_logit: direction `(bsz, num_blocks, embed_dim)` and offset `(bsz, num_blocks)`, at
                least float32: the mean logit of token x_i as a key of its block is
                direction . x_i + offset. None where :meth:`scores_tokens` says no.
            lengths: of the blocks; None if all are full.
            counts: `(bsz, num_blocks, block_size)`, tokens that each token stands for; None: 1.
            state: the layer before's, or None in an anchor layer.
        """
        logits = self.score(x, *mean_logit) if mean_logit is not None else None
        pooled = state
        if pooled is None:
            assert logits is not None
            pooled = self.assign(logits, lengths, counts, tie_tolerance(x.dtype))
        log_weights = pooled.log_weights
        if state is not None and self.reweight is not None and logits is not None:
            eta = full_precision(self.reweight)
            log_weights = torch.addcmul(log_weights, eta, logits.unsqueeze(-2)).log_softmax(dim=-1)
        weights = log_weights.exp()
        if pooled.leader is not None:
            weights = straight_through(weights, pooled.leader)
        slots = weights.to(x.dtype) @ x
        if state is not None and self.gate_weight is not None:
            slots = self.carry(slots, state.slots.to(slots.dtype), state.single)
        return pooled._replace(log_weights=log_weights, slots=slots)

    def scores_tokens(self, state: Optional[PooledBlocks]) -> bool:
        """Whether :meth:`forward` needs the tokens' mean logits, given the state that it gets."""
        return state is None or self.reweight is not None

    def score(self, x: Tensor, direction: Tensor, offset: Tensor) -> Tensor:
        """r of :class:`BlockPooling`, `(bsz, num_blocks, block_size)`, at least float32."""
        with torch.autocast(x.device.type, enabled=False):
            towards = (direction + full_precision(self.scorer)).flatten(0, 1).unsqueeze(-1)
            tokens = full_precision(x).flatten(0, 1)
            logits = torch.baddbmm(offset.view(-1, 1, 1), tokens, towards)
            return logits.view(x.shape[:-1])

    def assign(
        self,
        logits: Tensor,
        lengths: Optional[BlockLengths],
        counts: Optional[Tensor],
        tolerance: float,
    ) -> PooledBlocks:
        """The anchor's part: which token goes to which slot (the slots' states are not yet set)."""
        blocks, block_size = logits.shape[:2], logits.size(2)
        sizes = RowSizes(
            lengths.lengths.flatten() if lengths is not None else None,
            self.num_slots,
            self.num_slots,
            block_size / self.num_slots,
        )
        scores = logits.sigmoid().flatten(0, 1)
        pooled = self.pooling(scores, sizes, self.pooling_base, tolerance)
        slot_range = torch.arange(self.num_slots, device=logits.device).unsqueeze(-1)
        member = pooled.assignment.unflatten(0, blocks).unsqueeze(-2) == slot_range
        tokens = member.sum(dim=-1, dtype=logits.dtype)
        slot_counts = tokens
        if counts is not None:
            slot_counts = (member * counts.unsqueeze(-2)).sum(dim=-1)
        log_weights = pooled.log_weights.unflatten(0, blocks).unsqueeze(-2)
        leader = pooled.leader.unflatten(0, blocks).unsqueeze(-2)
        return PooledBlocks(
            lengths=lengths,
            log_weights=log_weights.where(member, MASKED_LOGIT),
            leader=member & leader if pooled.hard else None,
            single=(tokens <= 1).unsqueeze(-1),
            slots=logits.new_empty(0),
            mass=TokenMass.of(slot_counts.flatten(1), pooled.scores.reshape(blocks[0], -1)),
        )

    def carry(self, candidate: Tensor, previous: Tensor, single: Tensor) -> Tensor:
        """The gate. single: `(bsz, num_blocks, num_slots, 1)` bool."""
        assert self.gate_weight is not None
        assert self.gate_bias is not None
        fresh, carried = self.gate_weight
        gate = torch.addcmul(self.gate_bias, fresh, candidate)
        gate = torch.addcmul(gate, carried, previous).sigmoid().to(candidate.dtype)
        return torch.lerp(previous, candidate, gate.masked_fill(single, 1.0))

    def idle_parameters(self, state: Optional[PooledBlocks]) -> Iterator[nn.Parameter]:
        """The parameters that :meth:`forward` did not use, given the state that it got."""
        if state is None:
            yield from (p for p in self.parameters() if p is not self.scorer)
        elif not self.scores_tokens(state):
            yield self.scorer
