"""What beam search needs and the packaged fairseq gets wrong."""

import math
from typing import Any, Optional, Tuple

import torch
from fairseq.search import DiverseBeamSearch
from torch import Tensor, nn


class RepeatBlocker(nn.Module):
    """Forbids a hypothesis to say the same run of `size` tokens twice.

    It takes the place of fairseq's, which compares the padding after the hypothesis instead of its
    last tokens, so that `--no-repeat-ngram-size` does nothing (fairseq issues 4709 and 5206). Where
    only one token may come, a prefix that is being forced, it may come though it repeats.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(
        self, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int
    ) -> Tensor:
        """
        Args:
            tokens: `(rows, max_len + 2)` long; column 0 is the start, columns up to step are real.
            lprobs: `(rows, vocabulary)`, changed in place.
            bsz, beam_size: unused.
            step: number of tokens generated so far.
        """
        said = tokens[:, 1 : step + 1]
        if said.size(1) < self.size:
            return lprobs
        runs = said.unfold(1, self.size, 1)  # rows x runs x size
        recent = said[:, said.size(1) - self.size + 1 :].unsqueeze(1)
        repeats = (runs[:, :, :-1] == recent).all(dim=2)
        penalty = torch.zeros_like(repeats, dtype=lprobs.dtype).masked_fill(repeats, -math.inf)
        ends = runs[:, :, -1]  # of few words, beside the vocabulary
        free = lprobs.gather(1, ends)
        lprobs.scatter_add_(1, ends, penalty)
        nothing_left = lprobs.amax(dim=1, keepdim=True) == -math.inf
        return lprobs.scatter_(1, ends, torch.where(nothing_left, free, lprobs.gather(1, ends)))


class DiverseBeams(DiverseBeamSearch):
    """What the groups of a sentence have in common is kept at its place in the batch.

    fairseq's looks it up at its number in the data, which is another sentence's place, or none.
    """

    group_overlap: Tensor  # (bsz, groups, groups)

    def step(
        self,
        step: int,
        lprobs: Tensor,
        scores: Optional[Tensor],
        prev_output_tokens: Optional[Tensor] = None,
        original_batch_idxs: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            step: tokens generated so far.
            lprobs: `(bsz, beam, vocabulary)`.
            scores: `(bsz, beam, step)`, of the hypotheses so far.
            prev_output_tokens, original_batch_idxs: unused.

        Returns:
            scores, words and beams of the candidates, each `(bsz, candidates)`.
        """
        places = torch.arange(lprobs.size(0), device=lprobs.device)
        return super().step(step, lprobs, scores, prev_output_tokens, places)

    def prune_sentences(self, batch_idxs: Tensor) -> None:
        """Keeps the sentences that go on, `(kept,)` long, which the search calls for."""
        self.group_overlap = self.group_overlap[batch_idxs]


def fix_search(generator: Any) -> Any:
    """Makes a generator of fairseq's do what its options say; returns it."""
    blocker = getattr(generator, "repeat_ngram_blocker", None)
    if blocker is not None and not isinstance(blocker, RepeatBlocker):
        generator.repeat_ngram_blocker = RepeatBlocker(blocker.no_repeat_ngram_size)
    if type(getattr(generator, "search", None)) is DiverseBeamSearch:
        generator.search.__class__ = DiverseBeams
    return generator
