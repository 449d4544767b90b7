"""The decoder: causal layers with carried state, exact one token at a time."""

from typing import Any, Dict, List, Optional, Tuple

from fairseq.models.transformer import TransformerDecoderBase
from torch import Tensor, nn

from ...attention.decoder import DecoderSelfAttention
from ...attention.projections import IncrementalState, UpdownAttention
from ...decoding.beams import BeamHistory, regroup_rows
from ...ops.step_linear import begin_step, step_linear
from .encoder import EncoderOut
from .layers import UpdownDecoderLayer, wrap_layer


class UpdownTransformerDecoder(TransformerDecoderBase):
    """fairseq's decoder with compressed self-attention and a beam-shared, weighted memory."""

    def __init__(self, cfg: Any, *args: Any, **kwargs: Any):
        super().__init__(cfg, *args, **kwargs)
        self.block_size = cfg.updown_decoder_block_size
        self.num_slots = cfg.updown_decoder_slots

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> nn.Module:
        return wrap_layer(UpdownDecoderLayer(cfg, no_encoder_attn), cfg)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[EncoderOut] = None,
        incremental_state: Optional[IncrementalState] = None,
        features_only: bool = False,
        **kwargs: Any,
    ) -> Tuple[Tensor, Dict[str, List[Optional[Tensor]]]]:
        """See fairseq's decoder and :meth:`extract_features_scriptable`.

        Returns:
            logits `(rows, tgt_len, vocabulary)`, or features where they are asked for, and a dict.
        """
        x, extra = super().forward(
            prev_output_tokens, encoder_out, incremental_state, features_only=True, **kwargs
        )
        if features_only or self.adaptive_softmax is not None:
            return x, extra
        return step_linear(incremental_state)(self.output_projection, x), extra

    def extract_features_scriptable(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[EncoderOut],
        incremental_state: Optional[IncrementalState] = None,
        full_context_alignment: bool = False,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
    ) -> Tuple[Tensor, Dict[str, List[Optional[Tensor]]]]:
        """
        Args:
            prev_output_tokens: `(rows, tgt_len)` long, right-padded. Rows may be several to a
                sentence of `encoder_out`, one after the other (beams).
            encoder_out: what the encoder returned.
            incremental_state: with it, only the last token is computed.
            full_context_alignment: not possible with a compressed, causal past.
            alignment_layer: the layer whose cross-attention is returned (default: the last).
            alignment_heads: average only that many heads (default: all).

        Returns:
            features `(rows, tgt_len, embed_dim)`, and a dict with `inner_states` `List[T x B x C]`
            and `attn` `[(rows, tgt_len, src_len)]`: the attention to the *source tokens*, composed
            through all poolings. It is `[None]` where nobody asked: in training, and in
            `fairseq-generate` without `--print-alignment`.

        Raises:
            ValueError: `full_context_alignment`, or more tokens than `--max-target-positions`.
        """
        if full_context_alignment:
            raise ValueError(
                "full_context_alignment: the decoder's slots are causal; train alignments without "
                "it (no --full-context-alignment)"
            )
        x = self.embed(prev_output_tokens, incremental_state)
        memory: Tuple[Optional[Tensor], ...] = (None,) * 4
        if encoder_out is not None and encoder_out["encoder_out"]:
            memory = unpack_memory(encoder_out)
        history: Optional[BeamHistory] = None
        if incremental_state is not None:
            history = self.add_token(incremental_state, x, memory[0])
            begin_step(incremental_state, x.size(0))
        layer_asked = self.num_layers - 1 if alignment_layer is None else alignment_layer
        attn: Optional[Tensor] = None
        inner_states: List[Optional[Tensor]] = [x.transpose(0, 1)]
        state: Tuple[Tensor, ...] = ()
        kept = {id(layer) for layer in self.layers}  # layerdrop chooses anew at each iteration
        for index in range(self.num_layers):
            layer = self.layers[index]
            if id(layer) not in kept:
                continue
            asked = alignment_layer is not None or (not self.training and layer.need_attn)
            asked = asked and index == layer_asked
            x, weights, *carried = layer(x, *memory, incremental_state, history, asked, *state)
            state = tuple(carried)
            inner_states.append(x.transpose(0, 1))
            if weights is not None and encoder_out is not None:
                heads = weights[:alignment_heads].float().mean(dim=0).to(x)
                attn = attention_to_source(heads, encoder_out)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if self.project_out_dim is not None:
            x = self.project_out_dim(x)
        if history is not None and history.completes_block(self.block_size):
            history = history.turn_block(self.block_size, self.num_slots)
            self.set_incremental_state(incremental_state, "beams", {"history": history})
        return x, {"attn": [attn], "inner_states": inner_states}

    def add_token(
        self, incremental_state: IncrementalState, x: Tensor, memory: Optional[Tensor]
    ) -> BeamHistory:
        """What the rows of `x`, `(rows, 1, embed_dim)`, descend from, with this step's token."""
        cached = self.get_incremental_state(incremental_state, "beams")
        if cached is not None:
            history = cached["history"]
        else:
            sentences = x.size(0) if memory is None else memory.size(0)
            history = BeamHistory.start(x.size(0), sentences, x.device)
        history = history.add_token(x.dtype)
        self.set_incremental_state(incremental_state, "beams", {"history": history})
        return history

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> None:
        """Moves the cached rows to `new_order`, `(new_rows,)` long; rows may repeat or go.

        Within a sentence only the history changes; the cached keys and values move if sentences
        were dropped, or rows scattered.
        """
        cached = self.get_incremental_state(incremental_state, "beams")
        if cached is None:
            return
        history = cached["history"]
        regrouping = regroup_rows(history.row_sentence, new_order)
        moved = history.reorder(new_order, regrouping)
        if moved is None or regrouping.kept is not None:
            for attention in self.modules():
                if moved is None and isinstance(attention, DecoderSelfAttention):
                    attention.regather(incremental_state, history, new_order, regrouping.sentences)
                elif regrouping.kept is not None and isinstance(attention, UpdownAttention):
                    attention.select_sentences(incremental_state, regrouping.kept)
        if moved is None:
            moved = history.copied(regrouping)
        self.set_incremental_state(incremental_state, "beams", {"history": moved})

    # What `SequenceGenerator` calls; no module below has anything of its own to reorder.
    reorder_incremental_state_scripting = reorder_incremental_state

    def embed(self, tokens: Tensor, incremental_state: Optional[IncrementalState]) -> Tensor:
        """Embeds tokens and positions, `(rows, tgt_len or 1, embed_dim)`, as fairseq does."""
        if tokens.size(1) > self.max_positions():
            raise ValueError(
                f"a target of {tokens.size(1)} tokens exceeds --max-target-positions "
                f"{self.max_positions()}; raise it or truncate (--truncate-target)"
            )
        positions = None
        if self.embed_positions is not None:
            positions = self.embed_positions(tokens, incremental_state=incremental_state)
        if incremental_state is not None:
            tokens = tokens[:, -1:]
        x = self.embed_scale * self.embed_tokens(tokens.contiguous())
        if self.quant_noise is not None:
            x = self.quant_noise(x)
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        if positions is not None:
            x = x + (positions[:, -1:] if incremental_state is not None else positions)
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x)


def unpack_memory(encoder_out: EncoderOut) -> Tuple[Optional[Tensor], ...]:
    """Memory `(sentences, memory_len, d)`, padding mask or None, counts and scores or None."""
    counts, scores = encoder_out.get("memory_counts"), encoder_out.get("memory_scores")
    padding_mask: Optional[Tensor] = encoder_out["encoder_padding_mask"][0]
    if not counts and not bool(padding_mask.any()):  # type: ignore[union-attr]
        padding_mask = None
    return (
        encoder_out["encoder_out"][0].transpose(0, 1),
        padding_mask,
        counts[0] if counts else None,
        scores[0] if scores else None,
    )


def attention_to_source(weights: Tensor, encoder_out: EncoderOut) -> Tensor:
    """Spreads attention to memory positions over the source tokens that they are made of.

    Args:
        weights: `(rows, tgt_len, memory_len)`.

    Returns:
        `(rows, tgt_len, src_len)`, in the source's own layout.
    """
    slot, share = encoder_out["source_slot"][0], encoder_out["source_weight"][0]
    beams = weights.size(0) // slot.size(0)
    index = slot.repeat_interleave(beams, dim=0).unsqueeze(1).expand(-1, weights.size(1), -1)
    return weights.gather(2, index) * share.repeat_interleave(beams, dim=0).unsqueeze(1).to(weights)
