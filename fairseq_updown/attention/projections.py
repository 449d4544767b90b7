"""What the three attention sites share: projections, key biases, and the mean logit of a key."""

from typing import Any, Dict, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from ..mass import CountBias, TokenMass
from ..ops.step_linear import Linear
from .functional import MASKED_LOGIT, full_precision, keep_in_graph, length_mask
from .slots import BlockCompressor, CompressedBlocks

IncrementalState = Dict[str, Dict[str, Optional[Tensor]]]


class UpdownAttention(MultiheadAttention):
    """Projections, initialisation and checkpoint names of fairseq's attention; batch first.

    Args:
        embed_dim, num_heads, dropout, q_noise, qn_block_size, kdim: as in fairseq.
        compressor: the Up operator, or None where nothing is compressed.
        kwargs: passed on to :class:`fairseq.modules.MultiheadAttention`.
    """

    cache_name: str  # of this site's part of the incremental state

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        compressor: Optional[BlockCompressor] = None,
        **kwargs: Any,
    ):
        super().__init__(embed_dim, num_heads, **kwargs)
        self.compressor = compressor
        self.count_bias = CountBias(num_heads)

    def reorder_incremental_state(  # type: ignore[override]
        self, incremental_state: Optional[IncrementalState], new_order: Tensor
    ) -> None:
        """Does nothing: the decoder follows a reordering for all its layers at once."""

    def select_sentences(self, incremental_state: IncrementalState, kept: Tensor) -> None:
        """Keeps of the cache the sentences `kept`, `(new_sentences,)` long."""
        cache = self.get_incremental_state(incremental_state, self.cache_name)
        if cache is not None:
            cache = {name: select_rows(tensor, kept) for name, tensor in cache.items()}
            self.set_incremental_state(incremental_state, self.cache_name, cache)

    @property
    def attention_dropout(self) -> float:
        """The dropout probability in force: 0 outside training."""
        active = self.training or self.dropout_module.apply_during_inference
        return self.dropout_module.p if active else 0.0

    def updown_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that a stock attention does not have."""
        yield from self.count_bias.parameters()
        if self.compressor is not None:
            yield from self.compressor.parameters()

    def key_bias(
        self, mass: Optional[TokenMass], padding_mask: Optional[Tensor]
    ) -> Optional[Tensor]:
        """`(bsz, num_heads or 1, length)`: the keys' count bias, or just their padding, or None."""
        if mass is not None:
            return self.count_bias(mass.counts, mass.scores)
        if padding_mask is not None:
            dtype = full_precision(self.count_bias.score_slope).dtype
            zeros = torch.zeros_like(padding_mask, dtype=dtype)
            return zeros.masked_fill(padding_mask, MASKED_LOGIT).unsqueeze(1)
        return None

    def mean_logit(self, blocks: Tensor, lengths: Tensor) -> Tuple[Tensor, Tensor]:
        """The mean over a block's queries and heads of their logit with a key, as a linear function
        of the key's token: with q the mean of the scaled queries over num_heads, heads side by
        side, q . (W_k x + b_k) = (W_k^T q) . x + q . b_k; and q itself is W_q of the mean token.

        Args:
            blocks: `(bsz, num_blocks, block_size, embed_dim)`, the attention's input.
            lengths: `(bsz, num_blocks)` long, real tokens of each block, which stand first.

        Returns:
            W_k^T q `(bsz, num_blocks, embed_dim)` and q . b_k `(bsz, num_blocks)`, at least
            float32.
        """
        with torch.autocast(blocks.device.type, enabled=False):
            is_real = ~length_mask(lengths, blocks.size(2))
            x = full_precision(blocks)
            share = is_real.to(x.dtype) / lengths.clamp(min=1).unsqueeze(-1)
            mean = (share.unsqueeze(2) @ x).squeeze(2)
            query_weight, query_bias, key_weight, key_bias = (
                full_precision(t)
                for proj in (self.q_proj, self.k_proj)
                for t in (proj.weight, proj.bias)
            )
            query = F.linear(mean, query_weight, query_bias) * (self.scaling / self.num_heads)
            return query @ key_weight, query @ key_bias

    def project_slots(self, state: CompressedBlocks) -> Tuple[Tensor, Tensor, Tensor]:
        """The slots' keys and values `(bsz, slots, embed_dim)` and bias `(bsz, num_heads, slots)`,
        block by block."""
        slots = state.slots.flatten(1, 2)
        bias = self.count_bias(state.counts.flatten(1, 2), state.scores.flatten(1, 2))
        return self.k_proj(slots), self.v_proj(slots), bias

    def project_out(self, x: Tensor, linear: Linear = nn.Module.__call__) -> Tensor:
        """The output projection of the heads side by side, `(bsz, length, embed_dim)`."""
        return keep_in_graph(linear(self.out_proj, x), self.updown_parameters())


def select_rows(
    tensor: Optional[Tensor], order: Optional[Tensor], dim: int = 0
) -> Optional[Tensor]:
    """`index_select` that lets None through on either side."""
    if tensor is None or order is None:
        return tensor
    return tensor.index_select(dim, order)
