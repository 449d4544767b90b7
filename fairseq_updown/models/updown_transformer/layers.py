"""Transformer layers that take the carried state in and hand it on, batch first."""

from typing import Any, Optional, Tuple

from fairseq.distributed import fsdp_wrap
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import (
    TransformerDecoderLayerBase,
    TransformerEncoderLayerBase,
)
from torch import Tensor, nn

from ...attention.cross import CrossAttention
from ...attention.decoder import DecoderSelfAttention
from ...attention.projections import IncrementalState
from ...attention.slots import BlockCompressor, CompressedBlocks
from ...decoding.beams import BeamHistory
from ...mass import TokenMass
from ...mixers.base import Mixer
from ...ops.feed_forward import feed_forward
from ...ops.step_linear import step_linear
from .options import parse_mixer


def wrap_layer(layer: nn.Module, cfg: Any) -> nn.Module:
    """Activation checkpointing and FSDP as fairseq's `build_*_layer` apply them."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    min_params = 0 if cfg.checkpoint_activations else cfg.min_params_to_wrap
    return fsdp_wrap(layer, min_num_params=min_params)


class UpdownEncoderLayer(TransformerEncoderLayerBase):
    """fairseq's encoder layer around the mixer that `--updown-mixer` names.

    Args:
        layer: its place in the encoder, counted from 0.
    """

    def __init__(self, cfg: Any, layer: int, return_fc: bool = False):
        self.layer = layer  # fairseq's constructor asks for the attention
        super().__init__(cfg, return_fc)

    def build_self_attention(self, embed_dim: int, cfg: Any) -> Mixer:
        mixer, size, ensemble = parse_mixer(cfg.updown_mixer)
        return mixer.from_config(embed_dim, cfg, self.layer, size, ensemble)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        counts: Optional[Tensor],
        scores: Optional[Tensor],
        *state: Tensor,
    ) -> Tuple[Optional[Tensor], ...]:
        """
        Tensors come and go one by one, not in tuples, so that activation checkpointing sees them.

        Args:
            x: `(bsz, length, embed_dim)`, real tokens first.
            padding_mask: `(bsz, length)` bool or None.
            counts, scores: the fields of a :class:`TokenMass`, or None.
            state: what the mixer of the layer before returned, nothing in an anchor layer.

        Returns:
            x, the feed-forward output (None unless `return_fc`), then the mixer's state.
        """
        mass = TokenMass(counts, scores) if counts is not None and scores is not None else None
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        x, new_state = self.self_attn(x, padding_mask, mass, state)
        x = self.residual_connection(self.dropout_module(x), residual)
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)
        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        fc_result = feed_forward(self, x)
        x = self.residual_connection(self.dropout_module(fc_result), residual)
        if not self.normalize_before:
            x = self.final_layer_norm(x)
        return (x, fc_result if self.return_fc else None, *new_state)


class UpdownDecoderLayer(TransformerDecoderLayerBase):
    """fairseq's decoder layer around :class:`DecoderSelfAttention` and :class:`CrossAttention`."""

    def build_self_attention(
        self, embed_dim: int, cfg: Any, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> DecoderSelfAttention:
        return DecoderSelfAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            block_size=cfg.updown_decoder_block_size,
            compressor=BlockCompressor.from_config(embed_dim, cfg, cfg.updown_decoder_slots),
            dropout=cfg.attention_dropout,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )

    def build_encoder_attention(self, embed_dim: int, cfg: Any) -> CrossAttention:
        return CrossAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            kdim=cfg.encoder.embed_dim,
            vdim=cfg.encoder.embed_dim,
            dropout=cfg.attention_dropout,
            encoder_decoder_attention=True,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Optional[Tensor],
        memory_padding_mask: Optional[Tensor],
        memory_counts: Optional[Tensor],
        memory_scores: Optional[Tensor],
        incremental_state: Optional[IncrementalState],
        history: Optional[BeamHistory],
        need_weights: bool,
        *state: Tensor,
    ) -> Tuple[Optional[Tensor], ...]:
        """
        Args:
            x: `(rows, tgt_len, embed_dim)`; tgt_len is 1 with `incremental_state`.
            memory: `(sentences, memory_len, encoder_embed_dim)`, or None without an encoder.
            memory_padding_mask: `(sentences, memory_len)` bool or None.
            memory_counts, memory_scores: the fields of the memory's :class:`TokenMass`, or None.
            history: with `incremental_state`, what each row descends from, this token included.
            need_weights: also return the cross-attention weights.
            state: the fields of a :class:`CompressedBlocks`, or nothing in an anchor layer.

        Returns:
            x, the weights `(num_heads, rows, tgt_len, memory_len)` or None, the state's fields.
        """
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        x, new_state = self.self_attn(
            x, CompressedBlocks(*state) if state else None, incremental_state, history
        )
        x = self.residual_connection(self.dropout_module(x), residual)
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)
        weights = None
        if self.encoder_attn is not None and memory is not None:
            mass = None
            if memory_counts is not None and memory_scores is not None:
                mass = TokenMass(memory_counts, memory_scores)
            residual = x
            if self.normalize_before:
                x = self.encoder_attn_layer_norm(x)
            x, weights = self.encoder_attn(
                x, memory, memory_padding_mask, mass, incremental_state, need_weights
            )
            x = self.residual_connection(self.dropout_module(x), residual)
            if not self.normalize_before:
                x = self.encoder_attn_layer_norm(x)
        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        fc_result = feed_forward(self, x, step_linear(incremental_state))
        x = self.residual_connection(self.dropout_module(fc_result), residual)
        if not self.normalize_before:
            x = self.final_layer_norm(x)
        return (x, weights, *(new_state or ()))
