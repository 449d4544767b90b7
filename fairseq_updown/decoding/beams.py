"""Where the hypotheses of a beam search are in the decoder's caches.

A cached tensor is `(sentences, positions, beams, *)`, keys and values head by head. What a beam
computed at a position is written once and never moved: when the search reorders the beams of a
sentence, only a small table changes that says who wrote what. Shape letters: P = positions,
b = decoder block, r = slots per block.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ..attention.functional import MASKED_LOGIT


class BeamHistory(NamedTuple):
    """The cached positions of all hypotheses: the visible slots, then the raw tokens in reach.

    Rows of a decoding step are hypotheses; those of a sentence, its beams, stand together.

    Attributes:
        num_tokens: tokens so far.
        row_sentence: `(rows,)` long, 0 0 0 1 1 1 ...
        origin: `(sentences, beams, P)` long, the beam that wrote each position of a hypothesis.
        pending_origin: `(sentences, beams)` long, the same of the previous block's slots, which are
            out of sight until the next block is complete.
        mask: `(sentences, 1, beams, P * beams)` additive: each hypothesis sees what it descends
            from. None if there is but one beam.
    """

    num_tokens: int
    row_sentence: Tensor
    origin: Tensor
    pending_origin: Tensor
    mask: Optional[Tensor] = None

    @classmethod
    def start(cls, rows: int, sentences: int, device: torch.device) -> "BeamHistory":
        """No token yet."""
        beams = rows // sentences
        row_sentence = torch.arange(sentences, device=device).repeat_interleave(beams)
        nothing = row_sentence.new_zeros(sentences, beams, 0)
        return cls(0, row_sentence, nothing, row_sentence.new_zeros(sentences, beams))

    @property
    def sentences(self) -> int:
        return self.origin.size(0)

    @property
    def beams(self) -> int:
        return self.origin.size(1)

    @property
    def positions(self) -> int:
        return self.origin.size(2)

    def by_sentence(self, x: Tensor) -> Tensor:
        """`(rows, *)` -> `(sentences, beams, *)`."""
        return x.unflatten(0, (self.sentences, self.beams))

    def add_token(self, dtype: torch.dtype) -> "BeamHistory":
        """Every beam writes a position; `dtype` is that of the mask."""
        own = self.own_beam()
        origin, mask = torch.cat([self.origin, own.unsqueeze(-1)], dim=2), None
        if self.beams > 1:
            other = origin.unsqueeze(-1) != own[0]
            mask = (other.to(dtype) * MASKED_LOGIT).flatten(2).unsqueeze(1)
        return self._replace(num_tokens=self.num_tokens + 1, origin=origin, mask=mask)

    def own_beam(self) -> Tensor:
        """`(sentences, beams)`, each hypothesis' own place."""
        beam = torch.arange(self.beams, device=self.origin.device)
        return beam.expand(self.sentences, -1)

    def completes_block(self, block_size: int) -> bool:
        return self.num_tokens % block_size == 0

    def turn_block(self, block_size: int, num_slots: int) -> "BeamHistory":
        """Once a block is complete: the slots of the one before take the place of its tokens."""
        pending = self.own_beam()
        if self.num_tokens == block_size:
            return self._replace(pending_origin=pending)
        slots, tokens = self.split(self.origin, block_size, dim=2)
        new_slots = self.pending_origin.unsqueeze(-1).expand(-1, -1, num_slots)
        origin = torch.cat([slots, new_slots, tokens], dim=2)
        return self._replace(origin=origin, pending_origin=pending)

    def split(self, x: Tensor, block_size: int, dim: int) -> Tuple[Tensor, Tensor]:
        """When two blocks are raw: the slots among the positions of `x`, and the last block."""
        num_slots, last = self.positions - 2 * block_size, self.positions - block_size
        return x.narrow(dim, 0, num_slots), x.narrow(dim, last, block_size)

    def reorder(self, new_order: Tensor, regrouping: "Regrouping") -> Optional["BeamHistory"]:
        """The history of the rows `new_order`, `(new_rows,)` long, of the same number of beams.
        None if they are not: then what they descend from must be copied."""
        sentences = regrouping.sentences
        if new_order.numel() != sentences * self.beams:
            return None
        origin, pending = (
            t.flatten(0, 1).index_select(0, new_order).unflatten(0, (sentences, self.beams))
            for t in (self.origin, self.pending_origin)
        )
        return BeamHistory(self.num_tokens, regrouping.row_sentence, origin, pending)

    def copied(self, regrouping: "Regrouping") -> "BeamHistory":
        """The history once every row has its own copy of its past."""
        rows = regrouping.row_sentence
        fresh = BeamHistory.start(rows.numel(), regrouping.sentences, rows.device)
        own = fresh.own_beam()
        origin = own.unsqueeze(-1).expand(-1, -1, self.positions)
        return fresh._replace(num_tokens=self.num_tokens, origin=origin, pending_origin=own)

    def collect(self, x: Tensor, origin: Tensor) -> Tensor:
        """Every hypothesis' own copy of what it descends from.

        Args:
            x: `(sentences, positions, beams, *)`. origin: `(sentences, beams, positions)`.

        Returns:
            `(rows, positions, *)`.
        """
        sentence = torch.arange(self.sentences, device=x.device).view(-1, 1, 1)
        position = torch.arange(x.size(1), device=x.device)
        return x[sentence, position, origin].flatten(0, 1)


class Regrouping(NamedTuple):
    """What a reordering of rows asks of the caches.

    Attributes:
        kept: `(new_sentences,)` long, the sentences to keep; None: all stay as they are.
        row_sentence: `(new_rows,)` long, the new one.
        sentences: how many there are then; known here, for to read it from a device is to wait.
    """

    kept: Optional[Tensor]
    row_sentence: Tensor
    sentences: int


def regroup_rows(row_sentence: Tensor, sentences: int, new_order: Tensor) -> Regrouping:
    """Follows a reordering of rows, of which equal runs share a sentence.

    If the new rows are not equal runs, each row gets a sentence of its own.

    Args:
        row_sentence: `(rows,)` long, the sentence of each row: 0 0 0 1 1 1 ...
        sentences: how many there are.
        new_order: `(new_rows,)` long, the old row that becomes each new row.
    """
    moved = row_sentence.index_select(0, new_order)
    if moved.equal(row_sentence):
        return Regrouping(None, row_sentence, sentences)  # rows moved within their sentences
    kept, runs = moved.unique_consecutive(return_counts=True)
    if kept.numel() * int(runs.max()) != moved.numel():
        kept = moved
    rows = torch.arange(kept.numel(), device=kept.device)
    row_sentence_after = rows.repeat_interleave(moved.numel() // max(1, kept.numel()))
    unchanged = kept.numel() == sentences and kept.equal(rows)
    return Regrouping(None if unchanged else kept, row_sentence_after, kept.numel())
