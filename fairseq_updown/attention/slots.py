"""Up: compressing blocks of tokens into weighted slots that are carried from layer to layer."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from .functional import MASKED_LOGIT, full_precision, length_mask
from .pooling import POOLINGS, straight_through, sum_by_slot, tie_tolerance


class PooledBlocks(NamedTuple):
    """The compressed attention information that one layer hands to the next.

    `block_size` tokens of a block share its `num_slots` slots; a slot means the same tokens in
    every layer of a stage, only its weights and its state are refreshed.

    Attributes:
        assignment: `(bsz, num_blocks, block_size)` long, each token's slot; `num_slots` at pads.
        leader: `(bsz, num_blocks, block_size)` bool, see :class:`~.pooling.Pooling`.
        log_weights: `(bsz, num_blocks, block_size)`, log of each token's share of its slot.
        slots: `(bsz, num_blocks, num_slots, embed_dim)`, the slots' states Z.
        scores: `(bsz, num_blocks, num_slots)` in (0, 1).
        counts: `(bsz, num_blocks, num_slots)`, tokens that each slot stands for; 0 if empty.
    """

    assignment: Tensor
    leader: Tensor
    log_weights: Tensor
    slots: Tensor
    scores: Tensor
    counts: Tensor


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
        self.hard = pooling == "topk"
        self.scorer = nn.Parameter(torch.zeros(embed_dim))
        self.reweight = nn.Parameter(torch.zeros(1)) if reweight else None
        # Open at the start: g = sigmoid(2) = 0.88 of the fresh candidate.
        self.gate_weight = nn.Parameter(torch.zeros(2, embed_dim)) if gate else None
        self.gate_bias = nn.Parameter(torch.full((embed_dim,), 2.0)) if gate else None

    def forward(
        self,
        x: Tensor,
        direction: Tensor,
        offset: Tensor,
        lengths: Tensor,
        counts: Optional[Tensor],
        state: Optional[PooledBlocks],
    ) -> PooledBlocks:
        """
        Args:
            x: `(bsz, num_blocks, block_size, embed_dim)`.
            direction: `(bsz, num_blocks, embed_dim)`, offset: `(bsz, num_blocks)`, at least
                float32: the mean logit of token x_i as a key of its block is
                direction . x_i + offset.
            lengths: `(bsz, num_blocks)` long, real tokens of each block; they stand first.
            counts: `(bsz, num_blocks, block_size)`, tokens that each token stands for; None: 1.
            state: the layer before's, or None in an anchor layer.
        """
        logits = self.score(x, direction, offset)
        pooled = state
        if pooled is None:
            pooled = self.assign(logits, lengths, counts, tie_tolerance(x.dtype))
        slot_range = torch.arange(self.num_slots, device=x.device).unsqueeze(-1)
        member = pooled.assignment.unsqueeze(-2) == slot_range
        log_weights = pooled.log_weights
        if state is not None and self.reweight is not None:
            updated = log_weights + full_precision(self.reweight) * logits
            updated = updated.unsqueeze(-2).masked_fill(~member, MASKED_LOGIT)
            log_weights = (updated.log_softmax(dim=-1) * member).sum(dim=-2)
        weights = straight_through(log_weights, pooled.leader) if self.hard else log_weights.exp()
        slots = (member * weights.unsqueeze(-2)).to(x.dtype) @ x
        if state is not None and self.gate_weight is not None:
            slots = self.carry(slots, state.slots, member)
        return pooled._replace(log_weights=log_weights, slots=slots)

    def score(self, x: Tensor, direction: Tensor, offset: Tensor) -> Tensor:
        """r of :class:`BlockPooling`, `(bsz, num_blocks, block_size)`, at least float32."""
        with torch.autocast(x.device.type, enabled=False):
            towards = (direction + full_precision(self.scorer)).unsqueeze(-1)
            return (full_precision(x) @ towards).squeeze(-1) + offset.unsqueeze(-1)

    def assign(
        self, logits: Tensor, lengths: Tensor, counts: Optional[Tensor], tolerance: float
    ) -> PooledBlocks:
        """The anchor's part: which token goes to which slot (the slots' states are not yet set)."""
        blocks, block_size = logits.shape[:2], logits.size(2)
        row_lengths = lengths.flatten()
        pooled = self.pooling(
            logits.sigmoid().flatten(0, 1),
            row_lengths,
            torch.full_like(row_lengths, self.num_slots),
            self.num_slots,
            self.pooling_base,
            tolerance,
        )
        if counts is None:
            row_counts = (~length_mask(row_lengths, block_size)).to(logits.dtype)
        else:
            row_counts = counts.flatten(0, 1)
        slot_counts = sum_by_slot(row_counts, pooled.assignment, self.num_slots)
        return PooledBlocks(
            assignment=pooled.assignment.unflatten(0, blocks),
            leader=pooled.leader.unflatten(0, blocks),
            log_weights=pooled.log_weights.unflatten(0, blocks),
            slots=logits.new_empty(0),
            scores=pooled.scores.unflatten(0, blocks),
            counts=slot_counts.unflatten(0, blocks),
        )

    def carry(self, candidate: Tensor, previous: Tensor, member: Tensor) -> Tensor:
        """The gate. member: `(bsz, num_blocks, num_slots, block_size)` bool."""
        assert self.gate_weight is not None
        assert self.gate_bias is not None
        fresh, carried = self.gate_weight
        gate = torch.sigmoid(fresh * candidate + carried * previous + self.gate_bias)
        single = member.sum(dim=-1, keepdim=True) <= 1
        gate = gate.to(candidate.dtype).masked_fill(single, 1.0)
        return gate * candidate + (1 - gate) * previous
