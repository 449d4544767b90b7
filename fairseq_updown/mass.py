"""What a token that came out of pooling carries besides its vector, and the bias that gives it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention.functional import MASKED_LOGIT, full_precision


class TokenMass(NamedTuple):
    """What a token that came out of pooling carries besides its vector.

    Attributes:
        counts: `(bsz, length)`, how many source tokens it stands for; 0 at pads.
        scores: `(bsz, length)` in (0, 1), how it was scored; 0 at pads.
        log_counts: `(bsz, 1, length)`, log c; `MASKED_LOGIT` at pads.
        by_score: `(bsz, 1, length)`, log c tanh s; 0 at pads.
    """

    counts: Tensor
    scores: Tensor
    log_counts: Tensor
    by_score: Tensor

    @classmethod
    def of(cls, counts: Tensor, scores: Tensor) -> "TokenMass":
        """Completes counts and scores with what the biases of all layers are made of."""
        log_counts = counts.log().clamp(min=MASKED_LOGIT).unsqueeze(1)
        return cls(counts, scores, log_counts, log_counts * scores.tanh().unsqueeze(1))


class CountBias(nn.Module):
    """log c (1 + a tanh s): the logit bias of a key that stands for c tokens.

    With a = 0, its start, a slot of c equal tokens weighs what those c tokens would weigh. A plain
    token has c = 1 and no bias.

    Args:
        num_heads: one a is learned per head.
    """

    def __init__(self, num_heads: int):
        super().__init__()
        self.score_slope = nn.Parameter(torch.zeros(num_heads))

    def forward(self, mass: TokenMass) -> Tensor:
        """`(bsz, num_heads, length)`; c = 0 hides the key."""
        slope = full_precision(self.score_slope)
        rows, heads = mass.counts.size(0), slope.numel()
        with torch.autocast(slope.device.type, enabled=False):
            return torch.baddbmm(
                mass.log_counts.expand(-1, heads, -1),
                slope.view(1, heads, 1).expand(rows, -1, -1),
                mass.by_score,
            )
