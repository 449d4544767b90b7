"""IGLOO: every token looks at the same number of tokens, at random but fixed places."""

from typing import Optional, Tuple

import torch
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

from ..attention.functional import full_precision, real_lengths
from ..mass import TokenMass
from .base import Mixer, Settings, State, projection
from .chosen_keys import sum_of_chosen


class Igloo(Mixer):
    """y_t = (sum_l a_tl (x W_2)_{pi'_t(l)}) W_F, a_t = softmax(r_t W), with the features

        r_tl = sum_{j,c} M_{ljc} x_{pi_t(l,j),c} + b_l

    of L patches of `patch_size` slices each, as many as in the authors' code ("IGLOO: Slicing the
    Features Space to Represent Sequences", arXiv 1807.03402). M applied to every token once gives
    each slice its value wherever it falls, so only numbers are gathered, not vectors: O(n L)
    besides the projections.

    The tables pi, pi' are floor(u n) for a sample of n tokens, u fixed per layer. A value that
    stands for c tokens weighs c e^{(r_t W)_l}; the features ignore the counts. There are no heads.

    Args:
        settings: `size` is L; the authors advise 30 to 70.
    """

    default_size = 64
    counts_layers = True
    patch_size = 4

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
        self.num_patches = settings.size
        self.layer = settings.layer
        self.dropout_module = FairseqDropout(dropout, module_name=type(self).__name__)
        num_slices = self.num_patches * self.patch_size
        noise = (q_noise, qn_block_size)
        self.slice_proj = projection(embed_dim, num_slices, *noise, bias=False)  # M
        self.patch_bias = nn.Parameter(torch.zeros(self.num_patches))  # b
        # W; L need not be a multiple of the noise's blocks
        self.mix_proj = projection(self.num_patches, self.num_patches, 0.0, 1, bias=False)
        self.v_proj = projection(embed_dim, embed_dim, *noise)  # W_2
        self.out_proj = projection(embed_dim, embed_dim, *noise)  # W_F

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        bsz, length, _ = x.shape
        places = self.places(length, real_lengths(x, padding_mask)).expand(bsz, -1, -1)
        at_slices, at_values = places.split(
            (self.num_patches * self.patch_size, self.num_patches), dim=-1
        )
        slices = self.slice_proj(x).gather(1, at_slices).unflatten(-1, (-1, self.patch_size))
        logits = full_precision(self.mix_proj(slices.sum(dim=-1) + self.patch_bias))
        if mass is not None:
            log_counts = mass.counts.clamp(min=1.0).log()
            logits = logits + log_counts.gather(1, at_values.flatten(1)).view_as(logits)
        value = self.v_proj(x)
        weights = self.dropout_module(logits.softmax(dim=-1))
        rows = at_values + torch.arange(bsz, device=x.device).view(-1, 1, 1) * length
        out = sum_of_chosen(*(t.unsqueeze(1) for t in (weights, value, rows)))
        return self.out_proj(out.squeeze(1)), None

    def places(self, length: int, lengths: Tensor) -> Tensor:
        """Where each of `length` tokens looks: the slices, patch by patch, then the values.

        Args:
            lengths: `(bsz or 1,)` long, real tokens of each row.

        Returns:
            `(bsz or 1, length, L (patch_size + 1))` long, always a real token if there is one.
        """
        num_columns = self.num_patches * (self.patch_size + 1)
        table = random_table(length, num_columns, self.layer, lengths.device)
        return (table * lengths.clamp(min=1).view(-1, 1, 1)) >> 32


def random_table(num_rows: int, num_columns: int, seed: int, device: torch.device) -> Tensor:
    """2^32 u, `(num_rows, num_columns)` long: fixed random numbers u in [0, 1).

    A number is a hash of its row, column and seed (two rounds of xor-shift and multiplication), so
    there is no table to keep, and row t is the same on any device and at any length.
    """
    number = torch.arange(num_rows * num_columns, device=device).view(num_rows, num_columns)
    number = number ^ ((seed + 1) * 0x9E3779B1 & 0xFFFFFFFF)
    for _ in range(2):
        number = ((number ^ (number >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return number ^ (number >> 16)
