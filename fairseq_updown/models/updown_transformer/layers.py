"""Transformer layers that take the carried state in and hand it on, batch first."""

from functools import partial
from typing import Any, Callable, Optional, Tuple

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.modules import SinusoidalPositionalEmbedding
from fairseq.modules.transformer_layer import (
    TransformerDecoderLayerBase,
    TransformerEncoderLayerBase,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...attention.cross import CrossAttention, CrossRead, Memory, MemoryKeys
from ...attention.decoder import DecoderSelfAttention
from ...attention.encoder import SlotAttention
from ...attention.slots import BlockPooling, EarlierSlots, PooledBlocks
from ...decoding.beams import BeamHistory
from ...decoding.cache import LayerCache
from ...mass import TokenMass
from ...mixers.base import Settings
from .options import block_size_of_layer, parse_mixer


def wrap_layer(layer: nn.Module, cfg: Any) -> nn.Module:
    """Activation checkpointing and FSDP as fairseq's `build_*_layer` apply them."""
    if cfg.checkpoint_activations:
        again = _offloaded if cfg.offload_activations else _checkpointed
        layer.forward = partial(again, layer.forward)  # type: ignore[method-assign]
    min_params = 0 if cfg.checkpoint_activations else cfg.min_params_to_wrap
    return fsdp_wrap(layer, min_num_params=min_params)


def _checkpointed(forward: Callable[..., Any], *args: Any) -> Any:
    """Keeps a layer's inputs only; the backward pass, where there is one, computes it again."""
    if not torch.is_grad_enabled():  # not in generation, where it would cost a sixth of a step
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False)


def _offloaded(forward: Callable[..., Any], x: Tensor, *args: Any) -> Any:
    """:func:`_checkpointed` with x kept in the CPU's memory until the backward pass; the others are
    small, or every layer's, as the memory is."""
    if not torch.is_grad_enabled():
        return forward(x, *args)
    device, trained = x.device, x.requires_grad
    given, kept = [x], _to_cpu(x.detach())

    def layer(_: Tensor, *args: Any) -> Any:
        if given:  # the first pass
            return forward(given.pop(), *args)
        return forward(kept.to(device, non_blocking=True).requires_grad_(trained), *args)

    # An input on the device tells whose random numbers, of dropout, the second pass must repeat.
    return _checkpointed(layer, x.new_empty(0), *args)


def _to_cpu(x: Tensor) -> Tensor:
    return x.to("cpu", non_blocking=True)


def lift_limit(positions: Optional[nn.Module], longest: int) -> None:
    """Lets sinusoidal positions be told for `longest` tokens: they grow with the text, but fairseq
    takes them to end at 100,000."""
    if isinstance(positions, SinusoidalPositionalEmbedding):
        positions.max_positions = longest  # type: ignore[assignment]


def build_compressor(cfg: Any, embed_dim: int, num_slots: int) -> Optional[BlockPooling]:
    """What the `updown_*` options ask for; None if `num_slots` is 0."""
    if num_slots == 0:
        return None
    return BlockPooling(
        embed_dim,
        num_slots=num_slots,
        pooling=str(cfg.updown_pooling),
        pooling_base=cfg.updown_pooling_base,
        gate=not cfg.updown_no_gate,
        reweight=not cfg.updown_no_reweight,
    )


def build_encoder_attention(cfg: Any, embed_dim: int, layer: int) -> nn.Module:
    """The self-attention of encoder layer `layer`, counted from 0, as `--updown-mixer` says."""
    mixer, size, ensemble = parse_mixer(cfg.updown_mixer)
    num_heads = cfg.encoder.attention_heads
    block_size = block_size_of_layer(cfg, layer)
    shared = dict(
        dropout=cfg.attention_dropout,
        q_noise=cfg.quant_noise.pq,
        qn_block_size=cfg.quant_noise.pq_block_size,
    )
    if mixer is SlotAttention:
        compressor = build_compressor(cfg, embed_dim, cfg.updown_slots)
        return SlotAttention(
            embed_dim, num_heads, block_size=block_size, compressor=compressor, **shared
        )
    settings = Settings(
        block_size=block_size,
        size=size,
        layer=layer,
        num_layers=cfg.encoder.layers,
        ensemble=ensemble,
    )
    return mixer(embed_dim, num_heads, settings, **shared)


class _Sublayers:
    """What both kinds of layer are made of: x -> norm(x + dropout(f(x))), or, where the layer
    pre-norms, x + dropout(f(norm(x)))."""

    normalize_before: bool

    def before(self, norm: nn.Module, x: Tensor) -> Tensor:
        """What f is given."""
        return norm(x) if self.normalize_before else x

    def after(self, norm: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """What f's `out` makes of x."""
        layer: Any = self
        x = layer.residual_connection(layer.dropout_module(out), x)
        return x if self.normalize_before else norm(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """fc2(dropout(activation(fc1(x)))); `ops/feed_forward.py` has a faster one."""
        layer: Any = self
        return layer.fc2(layer.activation_dropout_module(layer.activation_fn(layer.fc1(x))))


class UpdownEncoderLayer(_Sublayers, TransformerEncoderLayerBase):
    """fairseq's encoder layer around the attention that `--updown-mixer` names.

    Args:
        layer: its place in the encoder, counted from 0.
    """

    def __init__(self, cfg: Any, layer: int, return_fc: bool = False):
        self.layer = layer  # fairseq's constructor asks for the attention
        super().__init__(cfg, return_fc)

    def build_self_attention(self, embed_dim: int, cfg: Any) -> nn.Module:
        return build_encoder_attention(cfg, embed_dim, self.layer)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        mass: Optional[TokenMass],
        state: Any,
        earlier: Optional[EarlierSlots] = None,
    ) -> Tuple[Tensor, Optional[Tensor], Any]:
        """
        Args:
            x: `(bsz, length, embed_dim)`, real tokens first.
            padding_mask: `(bsz, length)` bool or None.
            mass: what the tokens stand for, None if they were never pooled.
            state: what the attention of the layer before returned, None in an anchor layer.
            earlier: of the segments before x; such a layer's attention is a :class:`SlotAttention`.

        Returns:
            x, the feed-forward output (None unless `return_fc`), and the attention's state.
        """
        norm = self.self_attn_layer_norm
        more = () if earlier is None else (earlier,)
        out, state = self.self_attn(self.before(norm, x), padding_mask, mass, state, *more)
        x = self.after(norm, x, out)
        norm = self.final_layer_norm
        fc_result = self.feed_forward(self.before(norm, x))
        return self.after(norm, x, fc_result), fc_result if self.return_fc else None, state


class UpdownDecoderLayer(_Sublayers, TransformerDecoderLayerBase):
    """fairseq's decoder layer around :class:`DecoderSelfAttention` and :class:`CrossAttention`."""

    def build_self_attention(
        self, embed_dim: int, cfg: Any, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> DecoderSelfAttention:
        return DecoderSelfAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            block_size=cfg.updown_decoder_block_size,
            compressor=build_compressor(cfg, embed_dim, cfg.updown_decoder_slots),
            dropout=cfg.attention_dropout,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )

    def build_encoder_attention(self, embed_dim: int, cfg: Any) -> CrossAttention:
        return CrossAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            encoder_embed_dim=cfg.encoder.embed_dim,
            dropout=cfg.attention_dropout,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Optional[Memory],
        state: Optional[PooledBlocks],
        need_weights: bool = False,
        cache: Optional[LayerCache] = None,
        history: Optional[BeamHistory] = None,
    ) -> Tuple[Tensor, Optional[CrossRead], Optional[PooledBlocks], Optional[LayerCache]]:
        """All tokens at once, or with a cache one token more.

        Args:
            x: `(rows, tgt_len, embed_dim)`; tgt_len is 1 with a cache.
            memory: None without an encoder.
            state: the pooled blocks of the layer before, None in an anchor layer.
            need_weights: also return what the cross-attention read.
            cache: of the tokens before this one.
            history: with a cache, what each row descends from, this token included.

        Returns:
            x, what was read or None, the state, and the cache with this token, None where there
            was none.
        """
        norm = self.self_attn_layer_norm
        attention_input = self.before(norm, x)
        if cache is None or history is None:
            out, state = self.self_attn(attention_input, state)
            keys = self.read(memory)
        else:
            out, state, past = self.self_attn.step(attention_input, state, cache.past, history)
            keys = cache.memory or self.read(memory, often=True)
            cache = LayerCache(past, keys)
        x = self.after(norm, x, out)
        read = None
        if keys is not None:
            norm = self.encoder_attn_layer_norm
            out, weights = self.encoder_attn(self.before(norm, x), keys, need_weights)
            read = CrossRead(out, weights) if need_weights else None
            x = self.after(norm, x, out)
        norm = self.final_layer_norm
        x = self.after(norm, x, self.feed_forward(self.before(norm, x)))
        return x, read, state, cache

    def read(self, memory: Optional[Memory], often: bool = False) -> Optional[MemoryKeys]:
        """The memory as this layer attends to it, head by head in storage too if it is read
        `often`; None where it attends to none."""
        if self.encoder_attn is None or memory is None:
            return None
        keys = self.encoder_attn.read(memory)
        if often:
            keys = keys._replace(key=keys.key.contiguous(), value=keys.value.contiguous())
        return keys
