"""Blocks that see only themselves."""

from typing import Any, Dict

from ..attention.encoder import EncoderSelfAttention


class BlockwiseAttention(EncoderSelfAttention):
    """Exact attention within blocks of `--updown-block-size` tokens: :class:`EncoderSelfAttention`
    without slots, whatever `--updown-slots` says."""

    @classmethod
    def own_arguments(cls, embed_dim: int, cfg: Any) -> Dict[str, Any]:
        return {}
