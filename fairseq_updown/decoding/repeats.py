"""What beam search needs and the packaged fairseq gets wrong."""

import math
from typing import Any

import torch
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


def fix_repeat_blocker(generator: Any) -> Any:
    """Makes a generator of fairseq's do what its options say; returns it."""
    blocker = getattr(generator, "repeat_ngram_blocker", None)
    if blocker is not None and not isinstance(blocker, RepeatBlocker):
        generator.repeat_ngram_blocker = RepeatBlocker(blocker.no_repeat_ngram_size)
    return generator
