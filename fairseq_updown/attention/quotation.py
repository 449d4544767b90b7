"""Where the decoder stands in a quotation, by what it wrote and the source alone; see `copying.py`.

With l_ti the length of the longest run x_(i-l..i-1) = y_(t-l..t-1), at most `LONGEST_MATCH`, L_t
the largest l_ti, and s_i what the encoder knows of source token i before any pooling:

    f_ti = l_ti > 0 and e ** (SHARPNESS l_ti), normalised over i
    n_t = norm(sum over i of f_ti s_i), norm a layer norm without parameters
    r_t = W n_t + W2 relu(W1 n_t + b) + v_(L_t)

f is where the next word of a quotation stands. r is added, with dropout, to what the decoder's
first layer makes of its words; that layer sees them undisturbed, and the others know how the
quotation goes on, and whether it does: a heading ends where the encoder saw that it ends.
(CopyNet's selective read, arXiv 1603.06393, section 3.3, asks for one written word, and reads its
state, not the next one's.)
"""

from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import MASKED_LOGIT, group_rows

# Runs are counted up to this: several places may share a name of many pieces, and the words before
# it tell which of them is quoted.
LONGEST_MATCH = 16

# A run that is longer by one word outweighs twenty shorter ones.
SHARPNESS = 3.0


class Quotation(NamedTuple):
    """What may come next if the words written last are a quotation.

    Attributes:
        longest: `(rows, tgt_len, 1)` long, L; 0 where nothing is quoted.
        places: `(num_places,)` long, rising: the columns of the source of which the logits are; f
            is 0 at all others. None: all `src_len`.
        logits: `(rows, tgt_len, num_places)`, of f, at least float32; `MASKED_LOGIT` where l is 0.
    """

    longest: Tensor
    places: Optional[Tensor]
    logits: Tensor

    @classmethod
    def of(cls, places: Optional[Tensor], lengths: Tensor, dtype: torch.dtype) -> "Quotation":
        """
        Args:
            places, lengths: see :func:`match_lengths`.
            dtype: of the model.
        """
        longest = lengths.amax(dim=2, keepdim=True).long()
        logits = SHARPNESS * lengths.to(torch.promote_types(dtype, torch.float32))
        return cls(longest, places, logits.masked_fill(lengths == 0, MASKED_LOGIT))

    def select(self, x: Tensor, dim: int) -> Tensor:
        """x at the places, where `dim` is that of the source's columns."""
        return x if self.places is None else x.index_select(dim, self.places)


def last_written(prev_output_tokens: Tensor, tgt_len: int) -> Tensor:
    """`(rows, tgt_len, LONGEST_MATCH)`: each of the last tgt_len tokens and those before it, the
    last one first; -1 where there is none.

    Args:
        prev_output_tokens: `(rows, at least tgt_len)` long, from the start on.
    """
    padded = F.pad(prev_output_tokens, (LONGEST_MATCH - 1, 0), value=-1)
    return padded.unfold(1, LONGEST_MATCH, 1)[:, -tgt_len:].flip(2)


def match_lengths(
    written: Tensor, tokens: Tensor, padding_idx: int
) -> Tuple[Optional[Tensor], Tensor]:
    """How many of the tokens written last stand, in their order, right before each source token;
    `ops/match_lengths.py` has a form that looks at few of them.

    Args:
        written: `(rows, tgt_len, LONGEST_MATCH)` long, see :func:`last_written`.
        tokens: `(bsz, src_len)` long.

    Returns:
        The places, see :class:`Quotation`, here None; `(rows, tgt_len, num_places)` int8, the
        lengths there, at most `LONGEST_MATCH`; 0 at pads.
    """
    by_sentence = group_rows(written, tokens.size(0))
    padded = F.pad(tokens, (LONGEST_MATCH, 0), value=padding_idx).unsqueeze(1)
    run = (tokens != padding_idx).unsqueeze(1)
    lengths = torch.zeros((), dtype=torch.int8, device=tokens.device)
    for back in range(LONGEST_MATCH):
        before = padded.narrow(2, LONGEST_MATCH - 1 - back, tokens.size(1))
        run = run & (before == by_sentence[..., back : back + 1])
        lengths = lengths + run
    return None, lengths.view(*written.shape[:2], -1)


class SelectiveRead(nn.Module):
    """r, what a quotation goes on with; 0 at the start, so that a model that was trained without
    it writes what it wrote.

    Args:
        embed_dim: of the decoder's tokens.
        encoder_embed_dim: of the encoder's.
        hidden_dim: of W1 n, as in the decoder's feed-forward layers.
    """

    def __init__(self, embed_dim: int, encoder_embed_dim: int, hidden_dim: int):
        super().__init__()
        self.proj = nn.Linear(encoder_embed_dim, embed_dim, bias=False)
        self.fc1 = nn.Linear(encoder_embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim, bias=False)
        self.run_length = nn.Embedding(LONGEST_MATCH + 1, embed_dim)
        for start in (self.proj, self.fc2, self.run_length):
            nn.init.zeros_(start.weight)

    def forward(self, quotation: Quotation, states: Tensor) -> Tensor:
        """
        Args:
            quotation: of `(rows, tgt_len)` target tokens; several rows to a sentence stand
                together.
            states: `(sentences, src_len, encoder_embed_dim)`, s, of any size at pads.

        Returns:
            `(rows, tgt_len, embed_dim)`.
        """
        rows, tgt_len, _ = quotation.logits.shape
        states = quotation.select(states, 1)
        share = group_rows(quotation.logits, states.size(0)).softmax(dim=2)
        found = (share.to(states) @ states).view(rows, tgt_len, -1)
        # Where nothing is quoted there is no gradient either: a layer norm's is steep at 0.
        found = F.layer_norm(found, found.shape[-1:]).masked_fill(quotation.longest == 0, 0.0)
        length = self.run_length(quotation.longest.squeeze(2))
        found = found.to(length)
        return self.proj(found) + self.fc2(F.relu(self.fc1(found))) + length
