"""Lengths of quotations, on CPUs: a word stands at few places, and only they are looked at closely.

The plain form, `match_lengths` in `attention/quotation.py`, compares sixteen words at every place.
On a GPU it is the better one: this one waits to hear how many places there are.
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.functional import group_rows
from ..attention.quotation import LONGEST_MATCH, match_lengths


def match_lengths_at_few(
    written: Tensor, tokens: Tensor, padding_idx: int
) -> Tuple[Tensor, Tensor]:
    """:func:`~..attention.quotation.match_lengths`, at the places where one is above 0, or at the
    first one if there is none."""
    if tokens.device.type != "cpu":
        return match_lengths(written, tokens, padding_idx)
    by_sentence = group_rows(written, tokens.size(0))
    padded = F.pad(tokens, (LONGEST_MATCH, 0), value=padding_idx)
    before = padded.unfold(1, LONGEST_MATCH, 1)[:, :-1]  # each token's own, the last one last
    follows = before[..., -1].unsqueeze(1) == by_sentence[..., 0].unsqueeze(2)
    follows = follows & (tokens != padding_idx).unsqueeze(1)
    places = follows.flatten(0, 1).any(dim=0).nonzero().squeeze(1)
    if len(places) == 0:
        places = places.new_zeros(1)
    follows = follows.index_select(2, places)
    sentence, row, place = follows.nonzero(as_tuple=True)
    same = before[sentence, places[place]].flip(1) == by_sentence[sentence, row]
    run = same.cumprod(dim=1, dtype=torch.int8).sum(dim=1, dtype=torch.int8)
    lengths = follows.to(torch.int8)
    lengths[sentence, row, place] = run
    return places, lengths.view(*written.shape[:2], -1)
