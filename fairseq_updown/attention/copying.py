"""Copying through the pyramid: the source's own words in the decoder's distribution.

A pointer-generator (arXiv 1704.04368) over a compressed memory. With a_tj the last layer's
attention to slot j of the memory, averaged over heads, and m_ij the share of source token i in slot
j through all poolings:

    p(w | t) = g_t p_vocab(w | t) + (1 - g_t) C_tw,    C_tw = sum over i with x_i = w of a_tj m_ij
    g_t = sigmoid(u_t),    u_t = w . [decoder state; context] + c

What is copied goes to few words: log p is log g_t + log p_vocab, raised where C_tw is above 0. So a
row of the vocabulary's size is needed once, as for a softmax, and log p is finite everywhere.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import full_precision

# u at the start, g = 0.982: a model that was trained without copying moves at most 0.018 of its
# probability, and no word's log-probability falls by more than 0.018.
GATE_START = 4.0

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

    def places(self, rows: int, tgt_len: int) -> Tensor:
        """`(rows, tgt_len, num_words)`, the words for each target token."""
        words = self.words.repeat_interleave(rows // self.words.size(0), dim=0)
        return words.unsqueeze(1).expand(-1, tgt_len, -1)


class CopyGate(nn.Module):
    """u = w . [decoder state; context] + c, the log-odds of writing freely against copying.

    Args:
        embed_dim: of the decoder's state, and of the context.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, embed_dim))
        self.bias = nn.Parameter(torch.tensor([GATE_START]))

    def forward(self, state: Tensor, context: Tensor) -> Tensor:
        """
        Args:
            state: `(rows, tgt_len, embed_dim)`, what the logits are made of.
            context: `(rows, tgt_len, embed_dim)`, what the last layer read.

        Returns:
            `(rows, tgt_len)`, at least float32.
        """
        with torch.autocast(state.device.type, enabled=False):
            weight = full_precision(self.weight)
            of_state, of_context = (
                full_precision(state) @ weight[0],
                full_precision(context) @ weight[1],
            )
            return of_state + of_context + full_precision(self.bias)


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


def group_rows(x: Tensor, sentences: int) -> Tensor:
    """`(rows, tgt_len, *)` -> `(sentences, beams * tgt_len, *)`."""
    return x.reshape(sentences, -1, *x.shape[2:])
