"""Lengths of quotations, on CPUs: a word stands at few places, and only they are looked at closely.

The plain form, `match_lengths` in `attention/quotation.py`, compares sixteen words at every place.
On a GPU it is the better one: this one waits to hear how many places there are.
"""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.functional import group_rows
from ..attention.quotation import LONGEST_MATCH, match_lengths

# Of all pairs of a target and a source token. Where a source is one word again and again there are
# more, and the plain form takes less memory and time; but not for less than a thousand.
FEW_MATCHES, ALWAYS_FEW = 0.02, 1000


def match_lengths_at_few(
    written: Tensor, tokens: Tensor, padding_idx: int
) -> Tuple[Optional[Tensor], Tensor]:
    """:func:`~..attention.quotation.match_lengths`, at the columns where a sentence has a length
    above 0, or at the first one if none has; elsewhere than on CPUs, and where there are many, it
    is the plain form."""
    if tokens.device.type != "cpu":
        return match_lengths(written, tokens, padding_idx)
    by_sentence = group_rows(written, tokens.size(0))
    padded = F.pad(tokens, (LONGEST_MATCH, 0), value=padding_idx)
    before = padded.unfold(1, LONGEST_MATCH, 1)[:, :-1]  # each token's own, the last one last
    follows = before[..., -1].unsqueeze(1) == by_sentence[..., 0].unsqueeze(2)
    follows = follows & (tokens != padding_idx).unsqueeze(1)
    pairs = follows.numel()
    places = follows.flatten(0, 1).any(dim=0).nonzero().squeeze(1)
    if len(places) == 0:
        places = places.new_zeros(1)
    follows = follows.index_select(2, places)
    sentence, row, column = follows.nonzero(as_tuple=True)
    if len(column) > max(ALWAYS_FEW, FEW_MATCHES * pairs):
        return match_lengths(written, tokens, padding_idx)
    same = before[sentence, places[column]].flip(1) == by_sentence[sentence, row]
    run = same.cumprod(dim=1, dtype=torch.int8).sum(dim=1, dtype=torch.int8)
    lengths = follows.to(torch.int8)
    lengths[sentence, row, column] = run
    return places, lengths.view(*written.shape[:2], -1)
