"""Channel-wise sample permutation: each channel of the values is rolled and sorted in groups."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from ..attention.functional import length_mask, real_lengths, to_blocks
from ..mass import TokenMass
from .base import Mixer, Settings, State, projection


class ChannelwiseSamplePermutation(Mixer):
    """Y_c = P_c V_c, V = X W_v, then W_o ("Towards Better Multi-head Attention via Channel-wise
    Sample Permutation", arXiv 2410.10914, section 3.2).

    P_c rolls channel c by J_c tokens and sorts each group of g neighbours, ascending; a sample's
    last group may be shorter. No weights: `num_heads` and `dropout` have nothing to act on, and the
    tokens' mass is ignored. O(n C log g) in time, O(n C) in memory.

    With L layers of C channels, J_c = ceil(n^((l C + c) / (L C))) in layer l: from near to far
    across the whole encoder, the paper's schedule for sequences longer than C.

    Args:
        settings: `size` is g, 2 in the configuration that the authors released.
    """

    default_size = 2
    counts_layers = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        settings: Settings,
        *,
        dropout: float = 0.0,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.settings = settings
        self.v_proj = projection(embed_dim, embed_dim, q_noise, qn_block_size)
        self.out_proj = projection(embed_dim, embed_dim, q_noise, qn_block_size)

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        lengths = real_lengths(x, padding_mask)
        return self.out_proj(self.permute(self.v_proj(x), lengths)), None

    def permute(self, value: Tensor, lengths: Tensor) -> Tensor:
        """Y, zero at pads.

        Args:
            value: `(bsz, length, embed_dim)`.
            lengths: `(bsz,)` long, or `(1,)` where all samples are of one length.
        """
        size = value.size(1)
        pads = length_mask(lengths, size).unsqueeze(-1)
        lengths = lengths.clamp(min=1).view(-1, 1, 1)
        target = torch.arange(size, device=value.device).unsqueeze(-1)
        source = (target - self.shifts(lengths)).remainder(lengths)
        rolled = value.gather(1, source.expand_as(value)).masked_fill(pads, float("inf"))
        group_size = min(self.settings.size, size)
        groups = to_blocks(rolled, group_size, float("inf"))
        ascending = groups.sort(dim=2, stable=True).values
        return ascending.flatten(1, 2)[:, :size].masked_fill(pads, 0.0)

    def shifts(self, lengths: Tensor) -> Tensor:
        """J modulo n, `(*, 1, embed_dim)` long, of lengths n `(*, 1, 1)`."""
        channel = torch.arange(self.embed_dim, device=lengths.device)
        layer, num_layers = self.settings.layer, self.settings.num_layers
        exponent = (layer + channel.double() / self.embed_dim) / num_layers
        # A root that is a whole number must not be rounded up on one device and down on another.
        return (lengths**exponent - 1e-6).ceil().long()
