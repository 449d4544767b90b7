"""Up-DownFormer 1.0: one attention per stage, then an exchange between its result and the tokens.

Source: github.com/Kevin-shihello-world/Up-DownFormer, New_attention_counterpart.py; there is no
paper, and the code, which does not run, gives the idea only.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

from ..attention.functional import full_precision, real_lengths
from ..attention.pooling import combine, sum_by_slot
from ..mass import TokenMass
from .base import AttentionMixer, State


class ExchangeAttention(AttentionMixer):
    """The first layer of a stage attends, h = softmax(Q K^T / sqrt(head_dim)) V; a later one does

        g = h + W_v pool(h)              the carried features are updated
        x' = u * g + (1 - u) * x,        u = sigmoid(W_k x)
        h = v * x' + (1 - v) * g,        v = sigmoid(W_q g)

    elementwise and linear in length. Every layer returns W_o h and hands h on. pool replaces a
    token by the average of its cell, weighted by counts: `settings.size` cells divide a sample's
    real tokens evenly; in a sample shorter than that each token is its own.
    """

    default_size = 16

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        """The state is h, `(bsz, length, embed_dim)`."""
        if state:
            g = state[0] + self.pool(state[0], padding_mask, mass)
            exchanged = x + self.k_proj(x).sigmoid() * (g - x)
            h = g + self.q_proj(g).sigmoid() * (exchanged - g)
        else:
            h = self.attend_to_all(x, self.key_bias(mass, padding_mask))
        return self.project_out(h), (h,)

    def pool(self, h: Tensor, padding_mask: Optional[Tensor], mass: Optional[TokenMass]) -> Tensor:
        """W_v pool(h), `(bsz, length, embed_dim)`; at pads whatever."""
        bsz, length, embed_dim = h.shape
        num_cells = self.settings.size
        position = torch.arange(length, device=h.device).expand(bsz, length)
        lengths = real_lengths(h, padding_mask).unsqueeze(1)
        # Pads come after the last cell, where `combine` and `sum_by_slot` leave them out.
        cell = (position * num_cells // lengths.clamp(min=1)).clamp(max=num_cells)
        values = full_precision(h)
        counts = mass.counts.to(values) if mass is not None else values.new_ones(bsz, length)
        total = sum_by_slot(counts, cell, num_cells).clamp(min=1).unsqueeze(-1)
        average = combine(values, cell, counts, num_cells) / total
        own = cell.clamp(max=num_cells - 1).unsqueeze(-1).expand(-1, -1, embed_dim)
        of_cell = full_precision(self.v_proj(average.to(h.dtype)))  # where gradients add up
        return of_cell.gather(1, own).to(h.dtype)
