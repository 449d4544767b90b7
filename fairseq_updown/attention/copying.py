"""Copying through the pyramid: the source's own words in the decoder's distribution.

A pointer-generator (arXiv 1704.04368) over a compressed memory, which also goes on with what it
quotes. With a_tj the last layer's attention to slot j of the memory, averaged over heads, and m_ij
the share of source token i in slot j through all poolings:

    p(w | t) = g_t p_vocab(w | t) + (1 - g_t) C_tw,    C_tw = sum over i with x_i = w of c_ti
    c_ti = (1 - h_t) a_ti + h_t f'_ti,    a_ti = sum_j a_tj m_ij
    g_t = sigmoid(u_t),    u_t = w . [decoder state; context] + c

A slot knows that a passage matters, but hardly which word of it comes next. The source does: f_ti
is where the words written last go on in it, and l the length of their run, both of `quotation.py`;
so its next word is quoted, too. Where they stand in several places, the attention tells which.

    f'_ti = f_ti (a_ti + AGREEMENT_FLOOR) ** k, normalised over i
    h_t = sigmoid(w' . [decoder state; context] + c'_l), 0 where l is 0

The source's end is not copied: a target is over where the decoder says so, not where its attention
rests on the end or a quotation runs up to it. What goes there is written freely: with E_t the sum
of c_ti over ends of sentence, g_t becomes g_t + (1 - g_t) E_t, c_ti 0 there and c_ti / (1 - E_t)
elsewhere.

What is copied goes to few words: log p is log g_t + log p_vocab, raised where C_tw is above 0. So a
row of the vocabulary's size is needed once, as for a softmax, and log p is finite everywhere.
"""

from typing import NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import full_precision, group_rows
from .quotation import LONGEST_MATCH, Quotation

# u at the start, g = 0.982: a model that was trained without copying moves at most 0.018 of its
# probability, and no word's log-probability falls by more than 0.018.
GATE_START = 4.0

# c' at the start, by the length of the run: one word that stands in the source, too, says little,
# two or three say a lot.
CONTINUE_START = (-1.0, 1.0, 2.0, *(3.0,) * (LONGEST_MATCH - 3))

# k at the start, and what a place counts for to which the decoder attends not at all.
AGREEMENT_START, AGREEMENT_FLOOR = 1.0, 0.01

# c' of a model that was trained to copy before it could go on, so that it writes what it wrote.
CONTINUE_OFF = -10.0

# Less than this is nothing: so the gradient of its logarithm stays finite, with the loss scaled for
# fp16 too.
LEAST_MASS = 1e-20


class SourceWords(NamedTuple):
    """The different words of each source.

    Attributes:
        words: `(bsz, num_words)` long, rising; where a source has fewer, 0.
        index: `(bsz, src_len)` long, which of them each source token is.
    """

    words: Tensor
    index: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> "SourceWords":
        """Of the source tokens `(bsz, src_len)`, pads included. Waits for the device."""
        ordered, order = tokens.sort(dim=1)
        rank = F.pad((ordered[:, 1:] != ordered[:, :-1]).cumsum(dim=1), (1, 0))
        num_words = int(rank[:, -1].max()) + 1
        words = tokens.new_zeros(tokens.size(0), num_words).scatter_(1, rank, ordered)
        return cls(words, torch.empty_like(order).scatter_(1, order, rank))

    def expand(self, rows: int, tgt_len: int) -> Tensor:
        """`(rows, tgt_len, num_words)`, the words for each target token."""
        words = self.words.repeat_interleave(rows // self.words.size(0), dim=0)
        return words.unsqueeze(1).expand(-1, tgt_len, -1)


class CopyGate(nn.Module):
    """Whether a word is written freely or copied, u = w . [decoder state; context] + c, and whether
    it goes on with a quotation, h; see the module's equations.

    Args:
        embed_dim: of the decoder's state, and of the context.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, embed_dim))
        self.bias = nn.Parameter(torch.tensor([GATE_START]))
        self.continue_weight = nn.Parameter(torch.zeros(2, embed_dim))
        self.continue_bias = nn.Parameter(torch.tensor(CONTINUE_START))
        self.agreement = nn.Parameter(torch.tensor([AGREEMENT_START]))
        # 0 in models that were trained when the end was copied. A number: averages of checkpoints
        # have it, too.
        self.register_buffer("writes_end", torch.ones(1))

    def forward(
        self,
        state: Tensor,
        context: Tensor,
        attended: Tensor,
        quotation: Quotation,
    ) -> Tuple[Tensor, Tensor]:
        """
        Args:
            state: `(rows, tgt_len, embed_dim)`, what the logits are made of.
            context: `(rows, tgt_len, embed_dim)`, what the last layer read.
            attended: `(rows, tgt_len, src_len)`, its attention, see :func:`spread`.
            quotation: of the words written last.

        Returns:
            u `(rows, tgt_len)`, the log-odds of writing freely, and c `(rows, tgt_len, src_len)`,
            both at least float32 and as they are before :meth:`write_ends`.
        """
        with torch.autocast(state.device.type, enabled=False):
            state, context = full_precision(state), full_precision(context)
            weight, onward = full_precision(self.weight), full_precision(self.continue_weight)
            log_odds = state @ weight[0] + context @ weight[1] + full_precision(self.bias)
            longest = quotation.longest
            bias = full_precision(self.continue_bias)[(longest - 1).clamp(min=0)]
            goes_on = (state @ onward[0] + context @ onward[1]).unsqueeze(2) + bias
            goes_on = goes_on.sigmoid().masked_fill(longest == 0, 0.0)
            attended = full_precision(attended)
            there = quotation.select(attended, 2)
            agreement = full_precision(self.agreement) * (there + AGREEMENT_FLOOR).log()
            follows = (quotation.logits + agreement).softmax(dim=2)
            if quotation.places is None:
                return log_odds, torch.lerp(attended, follows, goes_on)
            copied = (1 - goes_on) * attended
            return log_odds, copied.index_add(2, quotation.places, goes_on * follows)

    def write_ends(self, log_odds: Tensor, copied: Tensor, is_end: Tensor) -> Tuple[Tensor, Tensor]:
        """Writes freely what would be copied of ends of sentence; see the module's equations.

        Args:
            log_odds: `(rows, tgt_len)`, u.
            copied: `(rows, tgt_len, num)`, of each word, C, or of each token, c; several rows to a
                sentence stand together.
            is_end: `(sentences, num)` bool.

        Returns:
            u and C, or c, as they become.
        """
        by_sentence = group_rows(copied, is_end.size(0))
        is_end = is_end * full_precision(self.writes_end)
        with torch.autocast(copied.device.type, enabled=False):
            at_end = (by_sentence @ is_end.unsqueeze(2)).view_as(log_odds).clamp(min=LEAST_MASS)
        rest = (by_sentence * (1 - is_end).unsqueeze(1)).view_as(copied)
        words = rest.sum(dim=2).clamp(min=LEAST_MASS)
        return torch.logaddexp(log_odds, at_end.log()) - words.log(), rest / words.unsqueeze(2)


def spread(attention: Tensor, slot: Tensor, share: Tensor) -> Tensor:
    """Attention to slots, spread over the source tokens that they are made of: a_tj m_ij.

    Args:
        attention: `(rows, tgt_len, memory_len)`; several rows to a sentence stand together.
        slot, share: `(sentences, src_len)`, where each source token went, and its share there.

    Returns:
        `(rows, tgt_len, src_len)`.
    """
    by_sentence = group_rows(attention, slot.size(0))
    index = slot.unsqueeze(1).expand(-1, by_sentence.size(1), -1)
    spread_out = by_sentence.gather(2, index) * share.unsqueeze(1).to(attention)
    return spread_out.view(*attention.shape[:2], -1)


def copied_mass(to_source: Tensor, source: SourceWords) -> Tensor:
    """C: what is copied of each word.

    Args:
        to_source: `(rows, tgt_len, src_len)`, see :func:`spread`.

    Returns:
        `(rows, tgt_len, num_words)`.
    """
    by_sentence = group_rows(to_source, source.index.size(0))
    mass = by_sentence.new_zeros(*by_sentence.shape[:2], source.words.size(1))
    mass = mass.scatter_add(2, source.index.unsqueeze(1).expand_as(by_sentence), by_sentence)
    return mass.view(*to_source.shape[:2], -1)


def log_mixture(logits: Tensor, mass: Tensor, log_odds: Tensor, index: Tensor) -> Tensor:
    """log(g p_vocab + (1 - g) C); `ops/log_mixture.py` has a form that keeps less.

    Args:
        logits: `(rows, tgt_len, vocabulary)`, of p_vocab.
        mass: `(rows, tgt_len, num_words)`, C at the words of the source, at least float32.
        log_odds: `(rows, tgt_len)`, u, at least float32.
        index: `(rows, tgt_len, num_words)` long, which words those are; the same one may come
            again if nothing is copied of it.

    Returns:
        `(rows, tgt_len, vocabulary)`, at least float32.
    """
    written = full_precision(logits).log_softmax(dim=-1) + F.logsigmoid(log_odds).unsqueeze(-1)
    own = written.gather(2, index)
    copied = mass.clamp(min=LEAST_MASS).log() + F.logsigmoid(-log_odds).unsqueeze(-1)
    gain = torch.logaddexp(own, copied) - own
    return written.scatter_add(2, index, gain.masked_fill(mass < LEAST_MASS, 0))
