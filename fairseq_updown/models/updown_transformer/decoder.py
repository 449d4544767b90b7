"""The decoder: causal layers with carried state, exact one token at a time."""

from typing import Any, Dict, List, Optional, Tuple

import torch
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules import LearnedPositionalEmbedding
from torch import Tensor, nn

from ...attention.copying import CopyGate, SourceWords, copied_mass, log_mixture, spread
from ...attention.cross import CrossRead, Memory
from ...attention.functional import full_precision, keep_in_graph
from ...attention.quotation import Quotation, SelectiveRead, last_written, match_lengths
from ...attention.slots import PooledBlocks
from ...decoding.cache import DecodingState, LayerCache
from ...ops.autocast import OFF, mixed_precision
from ...ops.packed_linear import StepPrecision
from .encoder import EncoderOut, read_memory
from .layers import UpdownDecoderLayer, lift_limit, wrap_layer

# fairseq's: module and name -> values. The decoder has one entry, {"state": DecodingState}.
IncrementalState = Dict[str, Dict[str, Any]]
_STATE = "decoding"


class UpdownTransformerDecoder(TransformerDecoderBase):
    """fairseq's decoder with compressed self-attention and a beam-shared, weighted memory."""

    def __init__(self, cfg: Any, *args: Any, **kwargs: Any):
        super().__init__(cfg, *args, **kwargs)
        lift_limit(self.embed_positions, self.max_target_positions)
        self.block_size = cfg.updown_decoder_block_size
        self.num_slots = cfg.updown_decoder_slots
        self.autocast = str(cfg.updown_autocast)
        self.step_precision = StepPrecision(str(cfg.updown_step_precision))
        self.copy_gate: Optional[CopyGate] = None
        self.selective_read: Optional[SelectiveRead] = None
        if cfg.updown_copy:
            self.copy_gate = CopyGate(cfg.decoder.embed_dim)
            self.selective_read = SelectiveRead(
                cfg.decoder.embed_dim, cfg.encoder.embed_dim, cfg.decoder.ffn_embed_dim
            )
        self.trains_alignment = False  # fairseq's --load-alignments: its loss asks for attention
        self.log_mixture = log_mixture
        self.match_lengths = match_lengths

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[EncoderOut] = None,
        incremental_state: Optional[IncrementalState] = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tuple[Tensor, Dict[str, List[Optional[Tensor]]]]:
        """fairseq's, all tokens at once in the precision of `--updown-autocast`; logits
        `(rows, tgt_len, vocabulary)` are in the parameters' precision, with `--updown-copy` without
        what is copied: :meth:`get_normalized_probs` adds that."""
        # A step reads each weight once: casting it there would take longer than it gains.
        autocast = self.autocast if incremental_state is None else OFF
        with mixed_precision(autocast, self.embed_tokens.weight):
            x, extra = super().forward(
                prev_output_tokens, encoder_out, incremental_state, *args, **kwargs
            )
        return (x if autocast == OFF else full_precision(x)), extra

    def get_normalized_probs(
        self,
        net_output: Tuple[Tensor, Optional[Dict[str, List[Optional[Tensor]]]]],
        log_probs: bool,
        sample: Optional[Dict[str, Tensor]] = None,
    ) -> Tensor:
        """fairseq's, with what is copied.

        Args:
            net_output: what :meth:`forward` returned, or the logits of its last token only.

        Raises:
            ValueError: the logits are of other tokens than what was copied.
        """
        logits, extra = net_output
        if not extra or "copied" not in extra:
            return super().get_normalized_probs(net_output, log_probs, sample)
        parts: Any = (extra["copied"][0], extra["copy_log_odds"][0], extra["copied_words"][0])
        rows, tgt_len = parts[0].shape[:2]
        if logits.size(0) != rows or logits.size(1) not in (1, tgt_len):
            raise ValueError(
                f"logits of {logits.size(0)} rows of {logits.size(1)} tokens, but copies of {rows} "
                f"of {tgt_len}: --updown-copy needs them row by row"
            )
        mixed = self.log_mixture(logits, *(part[:, -logits.size(1) :] for part in parts))
        return mixed if log_probs else mixed.exp()

    def make_generation_fast_(self, **kwargs: Any) -> None:
        """fairseq's word that this model will train no more."""
        self.step_precision = self.step_precision.for_inference()

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> nn.Module:
        return wrap_layer(UpdownDecoderLayer(cfg, no_encoder_attn), cfg)

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
            through all poolings. It is `[None]` where nobody asked: in training without
            `--load-alignments`, and in steps of `fairseq-generate` without `--print-alignment`.
            With `--updown-copy` also `copied`, `copied_words` `[(rows, tgt_len, num_words)]` and
            `copy_log_odds` `[(rows, tgt_len)]`, see :func:`log_mixture`, and, where all tokens are
            computed at once, except in training, `copied_from` `[(rows, tgt_len, src_len)]`.

        Raises:
            ValueError: `full_context_alignment`, or more tokens than `--max-target-positions`.
        """
        if full_context_alignment:
            raise ValueError(
                "full_context_alignment: the decoder's slots are causal; train alignments without "
                "it (no --full-context-alignment)"
            )
        x = self.embed(prev_output_tokens, incremental_state)
        quotation, continuation = self.read_on(x, prev_output_tokens, encoder_out)
        decoding = self.begin_step(incremental_state, x, encoder_out)
        memory: Optional[Memory] = None
        if encoder_out is not None and (decoding is None or decoding.layers[0].memory is None):
            memory = read_memory(encoder_out)  # later steps have it in the layers' caches
        asked = self.layer_asked(alignment_layer, decoding is not None)
        x, inner_states, caches, aligned, read = self.run_layers(
            x, memory, decoding, asked, continuation
        )
        attn = alignment(aligned, alignment_heads, encoder_out, x.dtype)
        if attn is not None and self.trains_alignment:  # its logarithm is taken; some share is 0
            attn = attn.clamp(min=torch.finfo(attn.dtype).tiny)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        extra: Dict[str, List[Optional[Tensor]]] = {"attn": [attn], "inner_states": inner_states}
        if self.copy_gate is not None:
            x, copying = self.copy(x, read, quotation, encoder_out, decoding is None)
            extra.update(copying)
        if self.project_out_dim is not None:
            x = self.project_out_dim(x)
        if decoding is not None:
            self.end_step(incremental_state, decoding._replace(layers=caches))
        return x, extra

    def layer_asked(self, alignment_layer: Optional[int], is_step: bool) -> Optional[int]:
        """The layer whose attention is returned; None where nobody asks for any: in training, and
        in steps after `make_generation_fast_`, but not in a pass that scores what is there."""
        if alignment_layer is not None:
            return alignment_layer
        last = self.num_layers - 1
        if self.training:
            return last if self.trains_alignment else None
        return last if self.layers[last].need_attn or not is_step else None

    def run_layers(
        self,
        x: Tensor,
        memory: Optional[Memory],
        decoding: Optional[DecodingState],
        asked: Optional[int],
        continuation: Optional[Tensor],
    ) -> Tuple[
        Tensor,
        List[Optional[Tensor]],
        Tuple[LayerCache, ...],
        Optional[CrossRead],
        Optional[CrossRead],
    ]:
        """
        Args:
            x: `(rows, tgt_len, embed_dim)`.
            memory: None where there is none, or the caches have it.
            decoding: the state of a generation, this step's token in its history.
            asked: the layer whose attention is returned.
            continuation: what is added after the first layer, see :class:`SelectiveRead`.

        Returns:
            x; the states `T x B x C` before and after each layer; the caches; what layer `asked`
            read, and what the last one did where the decoder copies, else None.
        """
        inner_states: List[Optional[Tensor]] = [x.transpose(0, 1)]
        state: Optional[PooledBlocks] = None
        caches: List[LayerCache] = []
        aligned: Optional[CrossRead] = None
        read: Optional[CrossRead] = None
        kept = {id(layer) for layer in self.layers}  # layerdrop chooses anew at each iteration
        indices = [index for index in range(self.num_layers) if id(self.layers[index]) in kept]
        if not indices and memory is not None:
            x = keep_in_graph(x, [memory.states])  # and so the encoder
        for index in range(self.num_layers):
            if index not in indices:
                x = keep_in_graph(x, self.layers[index].parameters())
                continue
            step = (decoding.layers[index], decoding.history) if decoding is not None else ()
            copies = self.copy_gate is not None and index == indices[-1]
            needed = copies or index == asked
            x, read, state, cache = self.layers[index](x, memory, state, needed, *step)
            if index == indices[0] and continuation is not None:
                x = x + continuation
            caches.append(cache)
            inner_states.append(x.transpose(0, 1))
            if index == asked:
                aligned = read
        return x, inner_states, tuple(caches), aligned, read

    def read_on(
        self, x: Tensor, prev_output_tokens: Tensor, encoder_out: Optional[EncoderOut]
    ) -> Tuple[Optional[Quotation], Optional[Tensor]]:
        """Where the words written last stand in the source, and what they go on with there; None
        where nothing is copied, or there is no source.

        Args:
            x: `(rows, tgt_len, embed_dim)`, the embedded tokens.
            prev_output_tokens: `(rows, at least tgt_len)` long, from the start on.
        """
        if self.selective_read is None or encoder_out is None:
            return None, None
        written = last_written(prev_output_tokens, x.size(1))
        source = encoder_out["src_tokens"][0]
        places, lengths = self.match_lengths(written, source, self.padding_idx)
        quotation = Quotation.of(places, lengths, x.dtype)
        continuation = self.selective_read(quotation, encoder_out["source_states"][0])
        return quotation, self.dropout_module(continuation)

    def copy(
        self,
        x: Tensor,
        read: Optional[CrossRead],
        quotation: Optional[Quotation],
        encoder_out: Optional[EncoderOut],
        at_once: bool,
    ) -> Tuple[Tensor, Dict[str, List[Optional[Tensor]]]]:
        """What is copied, by what the last layer read and what was written; nothing where it read
        nothing, as where layerdrop left no layer.

        Args:
            x: `(rows, tgt_len, embed_dim)`, the decoder's state.
            quotation: of the words written last; None where there is no source.
            at_once: no step of a generation, which needs no `copied_from`.

        Returns:
            x, and `copied_from`, `copied`, `copied_words` and `copy_log_odds`, if any.
        """
        assert self.copy_gate is not None
        assert self.selective_read is not None
        if read is None or quotation is None or encoder_out is None:
            unused = [*self.copy_gate.parameters(), *self.selective_read.parameters()]
            return keep_in_graph(x, unused), {}
        words = source_words(encoder_out)
        attended = attention_to_source(read.weights.mean(dim=0), encoder_out)
        before, to_source = self.copy_gate(x, read.context, attended, quotation)
        mass, eos = copied_mass(to_source, words), self.dictionary.eos()
        log_odds, mass = self.copy_gate.write_ends(before, mass, words.words == eos)
        told = at_once and not self.training
        if told:
            is_end = encoder_out["src_tokens"][0] == eos
            to_source = self.copy_gate.write_ends(before, to_source, is_end)[1]
        return x, {
            "copied_from": [to_source if told else None],
            "copied": [mass],
            "copied_words": [words.expand(x.size(0), x.size(1))],
            "copy_log_odds": [log_odds],
        }

    def begin_step(
        self,
        incremental_state: Optional[IncrementalState],
        x: Tensor,
        encoder_out: Optional[EncoderOut],
    ) -> Optional[DecodingState]:
        """The state of the generation, this step's token (`x`) in its history; None
        where all tokens are computed at once."""
        if incremental_state is None:
            return None
        cached = self.get_incremental_state(incremental_state, _STATE)
        if cached is not None:
            state = cached["state"]
        else:
            memory = encoder_out["encoder_out"] if encoder_out is not None else []
            sentences = memory[0].size(1) if memory else x.size(0)
            state = DecodingState.start(x.size(0), sentences, self.num_layers, x.device)
        return state._replace(history=state.history.add_token(x.dtype))

    def end_step(self, incremental_state: Optional[IncrementalState], state: DecodingState) -> None:
        """Keeps the state for the next step."""
        history = state.history
        if history.completes_block(self.block_size):
            state = state._replace(history=history.turn_block(self.block_size, self.num_slots))
        self.set_incremental_state(incremental_state, _STATE, {"state": state})

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> None:
        """Moves the cached rows to `new_order`, `(new_rows,)` long; rows may repeat or go."""
        cached = self.get_incremental_state(incremental_state, _STATE)
        if cached is not None:
            moved = cached["state"].reorder(new_order, self.block_size)
            self.set_incremental_state(incremental_state, _STATE, {"state": moved})

    # What `SequenceGenerator` calls; no module below has anything of its own to reorder.
    reorder_incremental_state_scripting = reorder_incremental_state

    def embed(self, tokens: Tensor, incremental_state: Optional[IncrementalState]) -> Tensor:
        """Embeds tokens and positions, `(rows, tgt_len or 1, embed_dim)`, as fairseq does."""
        learned = isinstance(self.embed_positions, LearnedPositionalEmbedding)
        if tokens.size(1) > self.max_positions() and (learned or incremental_state is None):
            longest = tokens.size(1)
            if incremental_state is None:  # in steps pads have positions, too
                longest = int(tokens.ne(self.padding_idx).sum(dim=1).max())
            if longest > self.max_positions():
                raise ValueError(
                    f"a target of {longest} tokens exceeds --max-target-positions "
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
        return self.dropout_module(x).to(self.embed_tokens.weight.dtype)  # see the encoder's


def source_words(encoder_out: EncoderOut) -> SourceWords:
    """The words of the sources, which the encoder of a model that copies has told apart."""
    return SourceWords(encoder_out["source_words"][0], encoder_out["source_index"][0])


def alignment(
    read: Optional[CrossRead],
    num_heads: Optional[int],
    encoder_out: Optional[EncoderOut],
    dtype: torch.dtype,
) -> Optional[Tensor]:
    """`(rows, tgt_len, src_len)`, the first heads' mean attention to the source tokens, if any."""
    if read is None or encoder_out is None:
        return None
    heads = read.weights[:num_heads].float().mean(dim=0)
    return attention_to_source(heads.to(dtype), encoder_out)


def attention_to_source(weights: Tensor, encoder_out: EncoderOut) -> Tensor:
    """Spreads attention to memory positions over the source tokens that they are made of.

    Args:
        weights: `(rows, tgt_len, memory_len)`.

    Returns:
        `(rows, tgt_len, src_len)`, in the source's own layout.
    """
    return spread(weights, encoder_out["source_slot"][0], encoder_out["source_weight"][0])
