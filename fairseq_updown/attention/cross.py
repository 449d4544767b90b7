"""The decoder's attention to the encoder's memory."""

from typing import Any, NamedTuple, Optional, Tuple

from torch import Tensor

from ..mass import TokenMass
from .functional import attend, attention_weights, merge_heads, split_heads
from .projections import UpdownAttention


class Memory(NamedTuple):
    """What the decoder reads, one row a sentence.

    Attributes:
        states: `(sentences, memory_len, encoder_embed_dim)`, the encoder's output.
        padding_mask: `(sentences, memory_len)` bool, True at pads; None if there are none.
        mass: what its tokens stand for; None if they were never pooled.
    """

    states: Tensor
    padding_mask: Optional[Tensor]
    mass: Optional[TokenMass]


class MemoryKeys(NamedTuple):
    """A memory as one layer attends to it, computed once a sentence and shared by its beams.

    Attributes:
        key, value: `(sentences, num_heads, memory_len, head_dim)`.
        bias: `(sentences, num_heads or 1, memory_len)`, or None.
    """

    key: Tensor
    value: Tensor
    bias: Optional[Tensor]


class CrossRead(NamedTuple):
    """What a layer read in the memory, and where.

    Attributes:
        context: `(rows, tgt_len, embed_dim)`, the attention's output.
        weights: `(num_heads, rows, tgt_len, memory_len)`, before any dropout, at least float32.
    """

    context: Tensor
    weights: Tensor


class CrossAttention(UpdownAttention):
    """softmax(q K^T + log c (1 + a tanh s)) V over the memory, c and s its counts and scores.

    The rows of a beam search stand sentence by sentence, as many to each: their number divided by
    that of the memory's rows is the beam size. All beams of a sentence read the same keys.

    Args:
        embed_dim, num_heads, encoder_embed_dim: of the queries, and of the memory.
        kwargs: see :class:`UpdownAttention`.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, encoder_embed_dim: int, **kwargs: Any):
        super().__init__(
            embed_dim,
            num_heads,
            kdim=encoder_embed_dim,
            vdim=encoder_embed_dim,
            encoder_decoder_attention=True,
            **kwargs,
        )

    def read(self, memory: Memory) -> MemoryKeys:
        """The memory's keys, values and bias, for :meth:`forward`."""
        return MemoryKeys(
            split_heads(self.k_proj(memory.states), self.num_heads),
            split_heads(self.v_proj(memory.states), self.num_heads),
            self.key_bias(memory.mass, memory.padding_mask),
        )

    def forward(  # type: ignore[override]
        self, x: Tensor, keys: MemoryKeys, need_weights: bool = False
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """
        Args:
            x: `(rows, tgt_len, embed_dim)`.
            keys: what :meth:`read` returned, or a copy of it in the decoder's cache.

        Returns:
            `(rows, tgt_len, embed_dim)`, and if asked for the weights
            `(num_heads, rows, tgt_len, memory_len)`.
        """
        key, value, bias = keys
        rows, tgt_len, _ = x.shape
        beams = rows // key.size(0)
        query = self.q_proj(x).view(key.size(0), beams * tgt_len, -1)
        query = split_heads(query, self.num_heads)
        weights = None
        if need_weights:
            weights = attention_weights(query, key, bias, scale=self.scaling)
            out = self.dropout_module(weights).to(value.dtype) @ value
            weights = weights.unflatten(2, (beams, tgt_len)).permute(1, 0, 2, 3, 4).flatten(1, 2)
        else:
            how = dict(scale=self.scaling, key_bias=bias, dropout=self.attention_dropout)
            out = attend(query, key, value, **how)
        out = out.unflatten(2, (beams, tgt_len)).transpose(1, 2).flatten(0, 1)
        unused = self.updown_parameters() if bias is None or not bias.requires_grad else ()
        return self.project_out(merge_heads(out), unused), weights
