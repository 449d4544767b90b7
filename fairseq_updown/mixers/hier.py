"""Hierarchical attention: within blocks, then among one vector per block."""

from typing import Optional, Tuple

import torch.nn.functional as F
from torch import Tensor

from ..attention.functional import to_blocks
from ..mass import TokenMass
from .base import AttentionMixer, State


class HierarchicalAttention(AttentionMixer):
    """The two levels of SMITH (Yang et al. 2020, arXiv 2004.12297, figure 2), in every layer:

        h_i = heads of attention(x_i; tokens of block j)         the block's encoder
        s_j = layer_norm(x_f + W_o h_f), f the block's first     the block's vector
        d_j = heads of attention(s_j; s_1, s_2, ...)             the document's encoder
        out_i = W_o (h_i + d_j), i in block j                    back to the tokens

    As in the paper a block is known by its first token, which has seen the block. Their dense
    layer and L2 normalization of that vector are here W_o and a layer norm without parameters. Both
    levels share their projections, so there are no parameters beyond an attention's. The paper's
    document vectors never come back to the tokens; a decoder that reads tokens needs them there.

    Cost: O(n b + (n / b)^2), b tokens a block: linear only while a document has few blocks. A
    token's count weighs within its block; blocks weigh alike.
    """

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        length = x.size(1)
        block_size = min(self.settings.block_size, length)
        blocks = to_blocks(x, block_size)
        bias = self.bias_blocks(self.key_bias(mass, padding_mask), x, block_size)
        bias = bias.flatten(0, 1) if bias is not None else None
        within = self.attend_to_all(blocks.flatten(0, 1), bias).view(blocks.shape)

        vectors = x[:, ::block_size] + self.out_proj(within[:, :, 0])
        vectors = F.layer_norm(vectors, vectors.shape[-1:])
        is_empty = padding_mask[:, ::block_size] if padding_mask is not None else None
        among = self.attend_to_all(vectors, self.key_bias(None, is_empty))

        out = (within + among.unsqueeze(2)).flatten(1, 2)[:, :length]
        return self.project_out(out), None
