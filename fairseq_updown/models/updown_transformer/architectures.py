"""The named architectures: what each sets if the user did not.

To add one, add an entry to `ARCHITECTURES`.
"""

from argparse import Namespace
from functools import partial
from typing import Any, Callable, Dict

from fairseq.models import ARCH_CONFIG_REGISTRY, register_model_architecture
from fairseq.models.bart.model import bart_base_architecture, bart_large_architecture
from fairseq.models.transformer import (
    base_architecture,
    tiny_architecture,
    transformer_iwslt_de_en,
    transformer_wmt_en_de_big,
)

from .migration import presets_of_then
from .options import DEFAULTS

MODEL_NAME = "updown_transformer"

# A block that holds any sequence: everything is ordinary attention.
UNBOUNDED = 2**30

_PYRAMIDION: Dict[str, Any] = {
    "max_source_positions": 8192,
    "updown_pool_layers": "2,4",
    "updown_pool_rate": 4.0,
    "updown_memory_size": 512,
    "updown_slots": 0,
}

# Each query sees 256 raw keys and, of 8,192 tokens, 248 slots; each slot costs time. Behind the
# first pooling the sequence is short, and larger blocks cost less than their slots would.
_ARXIV: Dict[str, Any] = {
    **_PYRAMIDION,
    "updown_block_size": 256,
    "updown_pooled_block_size": 1024,
    "updown_slots": 8,
}

# A block, of the encoder and of the decoder, is all that BART was trained on. The slots of other
# blocks are few and, at the start, light (see `start_near_blocks` in `pretrained.py`), so that a
# query's own block has most of its attention, as it had in training. Pooling halves what has passed
# two thirds of the layers, of sources longer than four blocks only.
_BART: Dict[str, Any] = {
    "updown_block_size": 1024,
    "updown_slots": 8,
    "updown_pool_rate": 2.0,
    "updown_memory_size": 4096,
    "updown_decoder_block_size": 1024,
}


def _bart(architecture: Callable[[Any], None], args: Any) -> None:
    """All of fairseq's BART, and what its architectures leave to the model."""
    architecture(args)
    base_architecture(args)


ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    MODEL_NAME: {},
    f"{MODEL_NAME}_tiny": {
        "stock": tiny_architecture,
        "updown_block_size": 32,
        "updown_slots": 4,
        "updown_memory_size": 32,
        "updown_decoder_block_size": 16,
        "updown_decoder_slots": 4,
    },
    f"{MODEL_NAME}_iwslt_de_en": {"stock": transformer_iwslt_de_en},
    f"{MODEL_NAME}_wmt_en_de": {},
    f"{MODEL_NAME}_wmt_en_de_big": {"stock": transformer_wmt_en_de_big},
    f"{MODEL_NAME}_arxiv": _ARXIV,
    # As many slots at its longest source as `_arxiv` has: all queries see all of them.
    f"{MODEL_NAME}_early": {
        **_ARXIV,
        "max_source_positions": 32768,
        "updown_slots": 2,
        "updown_pool_layers": "1,2",
    },
    f"{MODEL_NAME}_full": {
        "updown_block_size": UNBOUNDED,
        "updown_decoder_block_size": UNBOUNDED,
    },
    f"{MODEL_NAME}_blockwise": {"updown_slots": 0},
    f"{MODEL_NAME}_pyramidion": _PYRAMIDION,
    f"{MODEL_NAME}_bart_base": {
        **_BART,
        "stock": partial(_bart, bart_base_architecture),
        "updown_pool_layers": "4",
    },
    f"{MODEL_NAME}_bart_large": {
        **_BART,
        "stock": partial(_bart, bart_large_architecture),
        "updown_pool_layers": "8",
    },
}


def apply_architecture(name: str, args: Any) -> None:
    """Sets what architecture `name` sets, and all defaults, where `args` has nothing yet."""
    given = vars(args) if isinstance(args, Namespace) else args
    preset = {**ARCHITECTURES[name], **presets_of_then(given)}
    stock = preset.pop("stock", base_architecture)
    for option, value in preset.items():
        setattr(args, option, getattr(args, option, value))
    stock(args)
    for option, default in DEFAULTS.items():
        setattr(args, option, getattr(args, option, default))


def register_architectures() -> None:
    """Makes every name an `--arch` of fairseq's."""
    for name in ARCHITECTURES:
        if name != MODEL_NAME:
            register_model_architecture(MODEL_NAME, name)(partial(apply_architecture, name))
    # fairseq registers the model's own name itself, with a function that sets nothing.
    ARCH_CONFIG_REGISTRY[MODEL_NAME] = partial(apply_architecture, MODEL_NAME)


def resolve(config: Dict[str, Any]) -> Namespace:
    """All options of a model, those that are None filled in by its architecture (`_name`)."""
    args = Namespace(**{name: value for name, value in config.items() if value is not None})
    name = getattr(args, "_name", MODEL_NAME)
    apply_architecture(name if name in ARCHITECTURES else MODEL_NAME, args)
    return args
