"""Hugging Face's models for long documents, of the size of the others, as systems to measure.

They need the extra `peers` of setup.py.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from systems import SYSTEMS, VOCABULARY, Setup, Work
from torch import Tensor
from work_counter import WorkCounter

# Of the library; None where it is not installed, which their rows then say.
VERSION = version("transformers") if find_spec("transformers") else None


def _transformers() -> Any:
    """The library. It would load torchaudio where it finds one, which need not fit this torch."""
    sys.modules.setdefault("torchaudio", None)  # type: ignore[arg-type]
    import transformers

    return transformers


class PeerSystem:
    """An encoder-decoder of width 512/2048, 8 heads, 6+6 layers, with random weights."""

    model: Any

    def place(self, model: Any, setup: Setup) -> None:
        self.model = model.to(device=setup.device, dtype=getattr(torch, setup.dtype))

    def logits(self, source: Tensor, target: Tensor) -> Tensor:
        """`(bsz, tgt_len, vocabulary)`, as in training."""
        return self.model(input_ids=source, decoder_input_ids=target, use_cache=False).logits

    @property
    def encoder(self) -> Any:
        return self.model.get_encoder()

    def prepare_generation(self, beam: int) -> None:
        """Nothing to prepare."""

    def generate(self, source: Tensor, beam: int, steps: int) -> None:
        """Beam search to exactly ``steps + 1`` tokens, the end of sentence among them."""
        length = {"min_new_tokens": steps + 1, "max_new_tokens": steps + 1}
        self.model.generate(source, num_beams=beam, do_sample=False, **length)

    def count_decoding_step(self, prefix: int) -> WorkCounter:
        """Not counted: its caches are its own."""
        return WorkCounter()


class Led(PeerSystem):
    """Longformer-Encoder-Decoder (arXiv 2004.05150), attention window 512."""

    def __init__(self, work: Work, setup: Setup) -> None:
        library = _transformers()
        config = library.LEDConfig(
            vocab_size=VOCABULARY,
            d_model=512,
            encoder_layers=6,
            decoder_layers=6,
            encoder_attention_heads=8,
            decoder_attention_heads=8,
            encoder_ffn_dim=2048,
            decoder_ffn_dim=2048,
            attention_window=512,
            max_encoder_position_embeddings=-(-max(work.src_len, 1024) // 512) * 512,
            max_decoder_position_embeddings=max(work.tgt_len + 2, 1024),
            dropout=0.1,
            attention_dropout=work.attention_dropout,
            decoder_start_token_id=2,
        )
        self.place(library.LEDForConditionalGeneration(config), setup)


class LongT5(PeerSystem):
    """LongT5 (arXiv 2112.07916), transient global attention, radius 127, a global token per 16."""

    def __init__(self, work: Work, setup: Setup) -> None:
        library = _transformers()
        config = library.LongT5Config(
            vocab_size=VOCABULARY,
            d_model=512,
            d_kv=64,
            d_ff=2048,
            num_layers=6,
            num_heads=8,
            local_radius=127,
            encoder_attention_type="transient-global",
            dropout_rate=0.1,
            decoder_start_token_id=0,
        )
        model = library.LongT5ForConditionalGeneration(config)
        for module in model.modules():  # T5 has one rate for all dropouts; this one is attention's
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = work.attention_dropout
        self.place(model, setup)


NAMES = ("led", "longt5")


def is_missing(name: str) -> bool:
    """Whether this system is another library's, which is not installed."""
    return name in NAMES and VERSION is None


SYSTEMS["led"] = lambda name, work, setup: Led(work, setup)
SYSTEMS["longt5"] = lambda name, work, setup: LongT5(work, setup)
