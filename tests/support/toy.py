"""Toy dictionary and task, tiny models in float64, and the flags that the tests vary."""

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModel
from hypothesis import settings

from fairseq_updown.decoding.cache import DecodingState
from fairseq_updown.models.updown_transformer import UpdownTransformerModel
from fairseq_updown.models.updown_transformer import model as updown_model

PAD, EOS = 1, 2
# Tolerance of the tests that say exact: float64.
EXACT = dict(rtol=0.0, atol=1e-9)


def toy_task(num_words: int = 20) -> Any:
    dictionary = Dictionary()
    for i in range(num_words):
        dictionary.add_symbol(f"w{i}")
    return SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=None)


STOCK = dict(
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_layers=3,
    encoder_attention_heads=2,
    decoder_layers=3,
    decoder_attention_heads=2,
    dropout=0.0,
)

# Compression at every site: several blocks, pools, slots in the decoder.
COMPRESSED = dict(
    updown_block_size=5,
    updown_slots=2,
    updown_pool_layers="1,2",
    updown_pool_rate=2.0,
    updown_memory_size=6,
    updown_decoder_block_size=4,
    updown_decoder_slots=2,
)

# One configuration per public flag and per fairseq option that must keep working.
CONFIGURATIONS = {
    "default": {},
    "no pool": dict(updown_pool_layers=""),
    "blockwise": dict(updown_slots=0, updown_decoder_slots=0),
    "one slot": dict(updown_slots=1, updown_decoder_slots=1),
    "larger pooled blocks": dict(updown_pooled_block_size=8, updown_pool_layers="1"),
    "slots = block": dict(updown_slots=5, updown_decoder_slots=4),
    "rate 3": dict(updown_pool_rate=3.0),
    "rate 2.5 after every layer": dict(updown_pool_layers="1,2,3", updown_pool_rate=2.5),
    "memory 1, after every layer": dict(
        updown_memory_size=1, updown_pool_layers="1,2,3", updown_pool_rate=1.3
    ),
    "one token left": dict(
        updown_memory_size=1, updown_pool_rate=100.0, updown_pool_layers="2", updown_copy=True
    ),
    "cross slots": dict(updown_cross_slots=4),
    "only cross slots": dict(updown_cross_slots=1, updown_pool_layers=""),
    "tournament": dict(updown_pooling="tournament"),
    "topk": dict(updown_pooling="topk"),
    # Nothing that looks at the scores comes between the last pool and the cross slots.
    "mean": dict(updown_pooling="mean", updown_pool_layers="1,3", updown_cross_slots=4),
    "base 3": dict(updown_pooling_base=3.0),
    "no gate": dict(updown_no_gate=True),
    "no reweight": dict(updown_no_reweight=True),
    "block of one": dict(
        updown_block_size=1, updown_slots=1, updown_decoder_block_size=1, updown_decoder_slots=1
    ),
    "pre-norm": dict(encoder_normalize_before=True, decoder_normalize_before=True),
    "pre-norm, cross slots, topk": dict(
        encoder_normalize_before=True,
        decoder_normalize_before=True,
        updown_cross_slots=4,
        updown_pool_layers="2",
        updown_pooling="topk",
    ),
    "learned positions": dict(encoder_learned_pos=True, decoder_learned_pos=True),
    "no positions": dict(no_token_positional_embeddings=True),
    "layernorm embedding": dict(layernorm_embedding=True, share_all_embeddings=True),
    "other decoder width": dict(decoder_embed_dim=8),
    "copy": dict(updown_copy=True),
    "copy topk, cross slots": dict(
        updown_copy=True, updown_pooling="topk", updown_cross_slots=4, updown_pool_layers="2"
    ),
    "copy, other decoder width": dict(updown_copy=True, decoder_embed_dim=8),
    "copy, plain operators": dict(updown_copy=True, plain=True),
    "copy checkpointed": dict(updown_copy=True, checkpoint_activations=True),
    "checkpointed": dict(checkpoint_activations=True),
    "plain operators": dict(plain=True),
}


def few(number: int) -> Any:
    """So many examples, and as many times more as a profile of hypothesis has more than `tests`."""
    return settings(max_examples=number * settings().max_examples // 25)


# In the names of parameters that begin at values by which they do nothing.
OWN_PARTS = ("compressor", "count_bias", "pool", "copy_gate", "selective_read")


def build(
    kind: str = "updown", seed: int = 0, perturb: bool = True, plain: bool = False, **options: Any
) -> Any:
    """A float64 model in eval mode; `perturb` moves our parameters off their neutral start, `plain`
    leaves the fast forms of `ops/` out."""
    torch.manual_seed(seed)
    task = toy_task()
    if kind == "stock":
        return TransformerModel.build_model(Namespace(**{**STOCK, **options}), task).double().eval()
    flags = {**STOCK, **COMPRESSED, **options}
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setattr(updown_model, "accelerate", lambda model: model)
        model = UpdownTransformerModel.build_model(Namespace(**flags), task).double().eval()
    if perturb:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if any(part in name for part in OWN_PARTS):
                    parameter.add_(torch.randn_like(parameter) * 0.7)
    return model


def decoding_state(incremental_state: dict) -> DecodingState:
    """What the decoder keeps in a generation's incremental state."""
    (entry,) = (v for name, v in incremental_state.items() if name.endswith(".decoding"))
    return entry["state"]


def random_tokens(generator: torch.Generator, bsz: int, length: int) -> torch.Tensor:
    """Ends of sentence and unknown words among them."""
    return torch.randint(EOS, 24, (bsz, length), generator=generator)


def pad_rows(rows, left=False, extra=0):
    width = max(len(row) for row in rows) + extra
    batch = torch.full((len(rows), width), PAD)
    for i, row in enumerate(rows):
        batch[i, width - len(row) :] = row if left else batch[i, width - len(row) :]
        if not left:
            batch[i, : len(row)] = row
    return batch


def draw_rows(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    return [random_tokens(generator, 1, length)[0] for length in lengths]


def logits(model, source, target):
    return predicted(model, model(source, None, target))


def predicted(model, decoder_out):
    """The logits in what a model or its decoder returned; of one that copies the log p, for its
    logits are not all."""
    if getattr(model.decoder, "copy_gate", None) is None:  # fairseq's has none
        return decoder_out[0]
    return model.get_normalized_probs(decoder_out, log_probs=True)
