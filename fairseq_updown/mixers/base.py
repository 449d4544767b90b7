"""What every encoder mixer has in common."""

from typing import Any, NamedTuple, Optional, Tuple

from fairseq.modules import MultiheadAttention
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from ..attention.functional import (
    attend,
    merge_heads,
    split_heads,
)
from ..attention.projections import UpdownAttention
from ..mass import TokenMass

# What a layer hands to the next one of its stage; None in an anchor layer. Each mixer says what.
State = Optional[Tuple[Tensor, ...]]


class Settings(NamedTuple):
    """What a mixer may ask of its surroundings besides its dimensions.

    Attributes:
        block_size: tokens per block, or reach of a local window, of the mixers that have one.
        size: SIZE of `--updown-mixer NAME=SIZE`, what each mixer says it is.
        layer: the encoder layer, counted from 0.
        num_layers: of the encoder.
        ensemble: E of `--updown-mixer ssa=SIZExE`, see :class:`~.ssa.StochasticAttention`.
    """

    block_size: int = 512
    size: int = 0
    layer: int = 0
    num_layers: int = 1
    ensemble: int = 0


class Mixer(nn.Module):
    """An encoder's self-attention: lets the tokens of a sequence see each other.

    A subclass takes `(embed_dim, num_heads, settings, *, dropout, q_noise, qn_block_size)`, the
    last three as fairseq's attention does.
    """

    # The size where none is given; 0: the mixer has no such size.
    default_size = 0
    # Whether it samples what an ensemble averages over.
    has_ensemble = False
    # Whether what it does depends on the number of its layer.
    counts_layers = False
    # fairseq's early checkpoints hold q, k and v in one; whoever takes the value's alone must part
    # them as well.
    upgrade_state_dict_named = MultiheadAttention.upgrade_state_dict_named

    def forward(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: State,
    ) -> Tuple[Tensor, State]:
        """
        Args:
            x: `(bsz, length, embed_dim)`, real tokens first.
            padding_mask: `(bsz, length)` bool, True at pads; None if there are none.
            mass: what the tokens stand for, None if they were never pooled.
            state: what the layer before returned; None in the first layer of a stage.

        Returns:
            `(bsz, length, embed_dim)`, whatever at pads, and the state for the next layer.
        """
        raise NotImplementedError


class AttentionMixer(Mixer, UpdownAttention):
    """A mixer with the projections q, k, v, out of attention, and a bias for tokens with mass."""

    def __init__(self, embed_dim: int, num_heads: int, settings: Settings, **kwargs: Any):
        super().__init__(embed_dim, num_heads, self_attention=True, **kwargs)
        self.settings = settings

    def project_heads(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Queries, scaled, keys and values of `(bsz, length, embed_dim)`, each
        `(bsz, num_heads, length, head_dim)`."""
        query, key, value = self.q_proj(x) * self.scaling, self.k_proj(x), self.v_proj(x)
        return (
            split_heads(query, self.num_heads),
            split_heads(key, self.num_heads),
            split_heads(value, self.num_heads),
        )

    def attend_to_all(self, x: Tensor, bias: Optional[Tensor]) -> Tensor:
        """Exact attention of `(bsz, length, embed_dim)` to itself, short of the output projection;
        bias `(bsz, num_heads or 1, length)` or None."""
        heads = self.project_heads(x)
        return merge_heads(attend(*heads, key_bias=bias, dropout=self.attention_dropout))


def projection(
    in_features: int,
    out_features: int,
    q_noise: float,
    qn_block_size: int,
    *,
    bias: bool = True,
    gain: float = 1.0,
) -> nn.Module:
    """A linear layer with the initialisation and quantization noise of fairseq's attention."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    nn.init.xavier_uniform_(linear.weight, gain=gain)
    if bias:
        nn.init.zeros_(linear.bias)
    return quant_noise(linear, q_noise, qn_block_size)
