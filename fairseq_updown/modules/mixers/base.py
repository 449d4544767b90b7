"""What every encoder mixer has in common."""

from typing import Any, Dict, NamedTuple, Optional, Tuple

from torch import Tensor, nn

from ..attention import UpdownAttention
from ..compression import TokenMass

# What a layer hands to the next one of its stage; empty in an anchor layer.
State = Tuple[Tensor, ...]


class Settings(NamedTuple):
    """What a mixer may ask of its surroundings besides its dimensions.

    Attributes:
        block_size: tokens per block, or reach of a local window, of the mixers that have one.
        size: `--updown-mixer-size`, what each mixer says it is.
        layer: the encoder layer, counted from 0.
        num_layers: of the encoder.
        ensemble: `--updown-mixer-ensemble`, see :class:`~.ssa.StochasticAttention`.
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

    # `--updown-mixer-size` where it is not given; 0: the mixer has no such size.
    default_size = 0

    @classmethod
    def from_config(cls, embed_dim: int, cfg: Any, layer: int) -> "Mixer":
        """The mixer of one encoder layer, from the model's configuration."""
        settings = Settings(
            block_size=cfg.updown_block_size,
            size=cfg.updown_mixer_size or cls.default_size,
            layer=layer,
            num_layers=cfg.encoder.layers,
            ensemble=cfg.updown_mixer_ensemble,
        )
        return cls(  # type: ignore[call-arg]
            embed_dim,
            cfg.encoder.attention_heads,
            settings,
            dropout=cfg.attention_dropout,
            q_noise=cfg.quant_noise.pq,
            qn_block_size=cfg.quant_noise.pq_block_size,
            **cls.own_arguments(embed_dim, cfg),
        )

    @classmethod
    def own_arguments(cls, embed_dim: int, cfg: Any) -> Dict[str, Any]:
        """What this mixer's constructor takes that others do not."""
        return {}

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
            state: what the layer before returned; empty in the first layer of a stage.

        Returns:
            `(bsz, length, embed_dim)`, whatever at pads, and the state for the next layer.
        """
        raise NotImplementedError


class AttentionMixer(Mixer, UpdownAttention):
    """A mixer with the projections q, k, v, out of attention, and a bias for tokens with mass."""

    def __init__(self, embed_dim: int, num_heads: int, settings: Settings, **kwargs: Any):
        super().__init__(embed_dim, num_heads, self_attention=True, **kwargs)
        self.settings = settings
