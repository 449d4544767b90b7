"""The systems that cost.py measures: how each is built, called and generates.

A system is an architecture of fairseq, by its name, or an entry of :data:`SYSTEMS`.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor
from work_counter import WorkCounter, tensors_in

import fairseq_updown  # noqa: F401  registers the architectures

VOCABULARY = 10_000


@dataclass(frozen=True)
class Setup:
    """Where the work runs, and in which type."""

    device: str
    dtype: str


@dataclass(frozen=True)
class Work:
    """One row: a training step, or (kind "generate") beam search for ``tgt_len`` steps.

    The operations of a training step are counted in one more step, where ``counted`` asks for it.
    """

    kind: str
    bsz: int
    src_len: int
    tgt_len: int
    attention_dropout: float = 0.0
    beam: int = 1
    counted: bool = False


class FairseqSystem:
    """A model of fairseq's registry with random weights, that takes the work's lengths.

    Args:
        name: an architecture; options of its own follow it, see :func:`with_options`.
    """

    def __init__(self, name: str, work: Work, setup: Setup) -> None:
        arch, _, options = name.partition(" ")
        dictionary = Dictionary()
        for number in range(VOCABULARY - len(dictionary)):
            dictionary.add_symbol(f"w{number}")
        task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=None)
        args = Namespace(
            _name=arch,
            share_all_embeddings=True,
            dropout=0.1,
            attention_dropout=work.attention_dropout,
            max_source_positions=max(work.src_len, 1024),
            max_target_positions=max(work.tgt_len + 2, 1024),
            **json.loads(options or "{}"),
        )
        ARCH_CONFIG_REGISTRY[arch](args)
        model = ARCH_MODEL_REGISTRY[arch].build_model(args, task)
        self.model = model.to(device=setup.device, dtype=getattr(torch, setup.dtype))

    def logits(self, source: Tensor, target: Tensor) -> Tensor:
        """`(bsz, tgt_len, vocabulary)`, as in training."""
        return self.model(source, None, target)[0]

    @property
    def encoder(self) -> Any:
        """The module that a generation calls once."""
        return self.model.encoder

    def prepare_generation(self, beam: int) -> None:
        """Called once, before the first :meth:`generate`."""
        self.model.make_generation_fast_(beamable_mm_beam_size=beam, need_attn=False)

    def generate(self, source: Tensor, beam: int, steps: int) -> None:
        """Beam search to exactly ``steps`` tokens; the end of sentence makes one more step."""
        generator = SequenceGenerator(
            [self.model], self.model.decoder.dictionary, beam, max_len_b=steps, min_len=steps
        )
        generator.generate([self.model], {"net_input": {"src_tokens": source}})

    def count_decoding_step(self, prefix: int) -> WorkCounter:
        """From now on, counts the decoder's call for a target prefix of that many tokens.

        Watched are the decoder's parameters, plain and packed, the encoder's output and the
        incremental state.
        """
        forward = self.model.decoder.forward
        counter = WorkCounter()

        def counted(tokens: Tensor, **options: Any) -> Any:
            if tokens.size(1) != prefix:
                return forward(tokens, **options)
            decoder = self.model.decoder
            packed = getattr(getattr(decoder, "step_precision", None), "lasting", None)
            weights = [*decoder.parameters(), *(packed.packed.values() if packed else ())]
            counter.watch(tensors_in([weights, options]))
            with counter:
                return forward(tokens, **options)

        self.model.decoder.forward = counted
        return counter


# Systems of other libraries by the name that they have in tables and options: each a class with the
# methods of FairseqSystem and its `model`.
SYSTEMS: dict[str, Callable[[str, Work, Setup], Any]] = {}


def with_options(arch: str, **options: Any) -> str:
    """The architecture with options of its own, as a name that :func:`build` takes."""
    return f"{arch} {json.dumps(options)}"


def known(name: str) -> bool:
    """Whether :func:`build` can build it."""
    return name in SYSTEMS or name.partition(" ")[0] in ARCH_MODEL_REGISTRY


def build(name: str, work: Work, setup: Setup) -> Any:
    """The system of this name, the same weights in every call."""
    torch.manual_seed(1)
    return SYSTEMS.get(name, FairseqSystem)(name, work, setup)
