"""What the three attention sites share: projections, key biases, and the mean logit of a key."""

from typing import Any, Iterable, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from ..mass import CountBias, TokenMass
from .functional import (
    MASKED_LOGIT,
    full_precision,
    keep_in_graph,
    lowered,
    pad_to_multiple,
    weight_and_bias,
)
from .slots import BlockPooling, EarlierSlots, PooledBlocks


class UpdownAttention(MultiheadAttention):
    """Projections, initialisation and checkpoint names of fairseq's attention; batch first.

    Args:
        embed_dim, num_heads, dropout, q_noise, qn_block_size, kdim: as in fairseq.
        compressor: the Up operator, or None where nothing is compressed.
        kwargs: passed on to :class:`fairseq.modules.MultiheadAttention`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        compressor: Optional[BlockPooling] = None,
        **kwargs: Any,
    ):
        super().__init__(embed_dim, num_heads, **kwargs)
        self.compressor = compressor
        self.count_bias = CountBias(num_heads)

    @property
    def attention_dropout(self) -> float:
        """The dropout probability in force: 0 outside training."""
        active = self.training or self.dropout_module.apply_during_inference
        return self.dropout_module.p if active else 0.0

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Queries, not scaled yet, keys and values of x, all `(*, embed_dim)`."""
        x = lowered(x)
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

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
            return self.count_bias(mass)
        if padding_mask is not None:
            dtype = full_precision(self.count_bias.score_slope).dtype
            zeros = torch.zeros_like(padding_mask, dtype=dtype)
            return zeros.masked_fill(padding_mask, MASKED_LOGIT).unsqueeze(1)
        return None

    def bias_blocks(self, bias: Optional[Tensor], x: Tensor, block_size: int) -> Optional[Tensor]:
        """The bias of the keys x, `(bsz, num_heads or 1, length)` or None, block by block,
        `(bsz, num_blocks, num_heads or 1, block_size)`, filling hidden; None if there is nothing to
        hide and nothing to weigh."""
        if bias is None:
            if x.size(1) % block_size == 0:
                return None
            dtype = full_precision(self.count_bias.score_slope).dtype
            bias = torch.zeros(x.size(0), 1, x.size(1), dtype=dtype, device=x.device)
        bias = pad_to_multiple(bias, block_size, dim=2, value=MASKED_LOGIT)
        return bias.unflatten(2, (-1, block_size)).transpose(1, 2)

    def mean_logit(self, blocks: Tensor, share: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        """The mean over a block's queries and heads of their logit with a key, as a linear function
        of the key's token: with q the mean of the scaled queries over num_heads, heads side by
        side, q . (W_k x + b_k) = (W_k^T q) . x + q . b_k; and q itself is W_q of the mean token.

        Args:
            blocks: `(bsz, num_blocks, block_size, embed_dim)`, the attention's input.
            share: see :class:`~.slots.BlockLengths`; None if all blocks are full.

        Returns:
            W_k^T q `(bsz, num_blocks, embed_dim)` and q . b_k `(bsz, num_blocks)`, at least
            float32.
        """
        with torch.autocast(blocks.device.type, enabled=False):
            x = full_precision(blocks)
            mean = x.mean(dim=2) if share is None else (share.to(x) @ x).squeeze(2)
            query = F.linear(mean, *weight_and_bias(self.q_proj))
            query = query * (self.scaling / self.num_heads)
            key_weight, key_bias = weight_and_bias(self.k_proj)
            return query @ key_weight, query @ key_bias

    def project_slots(
        self, state: PooledBlocks, earlier: Optional[EarlierSlots] = None
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """The slots' keys and values `(bsz, slots, embed_dim)` and bias `(bsz, num_heads, slots)`,
        block by block, then the earlier ones."""
        slots, bias = state.slots.flatten(1, 2), self.count_bias(state.mass)
        if earlier is not None:
            slots = torch.cat([slots, earlier.slots.to(slots.dtype)], dim=1)
            bias = torch.cat([bias, self.count_bias(earlier.mass)], dim=2)
        return self.k_proj(slots), self.v_proj(slots), bias

    def project_out(self, x: Tensor, unused: Optional[Iterable[nn.Parameter]] = None) -> Tensor:
        """The output projection of the heads side by side, `(bsz, length, embed_dim)`.

        Args:
            unused: the parameters of ours that x does not come from; None: it may be all.
        """
        return keep_in_graph(
            self.out_proj(x), self.updown_parameters() if unused is None else unused
        )
