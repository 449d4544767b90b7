"""Options of `updown_transformer`: every flag of fairseq's `transformer`, and ours.

All options are one flat dataclass whose fields are None until somebody sets them, on the command
line, in yaml or through an architecture; only then the defaults below fill in. So an architecture
named in a hydra file (`model: {_name: updown_transformer_arxiv}`) counts just as `--arch` does.
"""

import math
import re
from argparse import Namespace
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Tuple

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models.transformer import TransformerConfig

from ...attention.pooling import POOLINGS
from ...mixers import MIXERS
from ...ops.autocast import AUTOCAST
from ...ops.packed_linear import FORMATS
from .migration import RETIRED

# name -> (type, default, help)
UPDOWN_OPTIONS: Dict[str, Tuple[Any, Any, str]] = {
    "updown_mixer": (
        str,
        "updown",
        f"the encoder's self-attention: {', '.join(MIXERS)}; with a size of its own as luna=64, "
        "ssa also with an ensemble as ssa=256x4, see docs/mixers.md",
    ),
    "updown_block_size": (int, 512, "encoder block: tokens that attend to each other directly"),
    "updown_pooled_block_size": (
        int,
        0,
        "the same for layers behind the first pooling, which see fewer tokens; 0: no other",
    ),
    "updown_slots": (int, 32, "slots per encoder block, seen by all other blocks; 0: blocks only"),
    "updown_pool_layers": (str, "", "pool the encoder's sequence after these layers, e.g. '2,4'"),
    "updown_pool_rate": (float, 4.0, "length divisor at each pooling"),
    "updown_memory_size": (int, 512, "never pool the encoder's sequence below this length"),
    "updown_decoder_block_size": (int, 128, "decoder block; own and previous block are seen raw"),
    "updown_decoder_slots": (int, 16, "slots per completed target block; 0: blocks only"),
    "updown_cross_slots": (int, 0, "pool the memory that the decoder reads to this; 0: as it is"),
    "updown_pooling": (
        ChoiceEnum(list(POOLINGS)),
        "seeded",
        "pooling operator",
    ),
    "updown_pooling_base": (
        float,
        20.0,
        "the tournament's base; larger is nearer to topk",
    ),
    "updown_copy": (
        bool,
        False,
        "let the decoder copy words of the source, through all poolings, go on with what it "
        "quotes, and read what comes next there; needs a dictionary that both sides share",
    ),
    "updown_autocast": (
        ChoiceEnum(list(AUTOCAST)),
        "off",
        "bfloat16: the forward pass under torch.autocast, where the processor is faster in it; "
        "bfloat16-always: wherever it is",
    ),
    "updown_step_precision": (
        ChoiceEnum(list(FORMATS)),
        "float32",
        "what the steps of a generation multiply by on a CPU; fewer bits are quicker to read",
    ),
    "updown_no_gate": (
        bool,
        False,
        "carry the slots' weights across layers, not their states",
    ),
    "updown_no_reweight": (bool, False, "keep the anchor layer's slot weights in later layers"),
}


def _stock_options(config: Any, prefix: str = "") -> Iterator[Tuple[str, Any, Any, Dict[str, str]]]:
    """(flat name, type, default, metadata) of each field of a nested fairseq dataclass."""
    for f in fields(config):
        if f.name.startswith("_") or f.name == "xformers_att_config":
            continue
        if is_dataclass(f.type):
            yield from _stock_options(f.type, f"{prefix}{f.name}_")
        else:
            # fairseq declares a list here but splits a string
            value_type = str if f.name == "layers_to_keep" else f.type
            yield prefix + f.name, value_type, f.default, dict(f.metadata)


_OPTIONS = [
    *_stock_options(TransformerConfig),
    *(
        (name, value_type, default, {"help": f"{text} (default: {default!r})"})
        for name, (value_type, default, text) in UPDOWN_OPTIONS.items()
    ),
]

# Set last, where neither the user nor an architecture did. The decoder's dimensions follow from
# others, and the task has a say in the positions.
DEFAULTS: Dict[str, Any] = {
    name: default
    for name, _, default, _ in _OPTIONS
    if name not in ("decoder_input_dim", "decoder_output_dim")
    and name not in ("max_source_positions", "max_target_positions")
}

UpdownTransformerFlags = make_dataclass(
    "UpdownTransformerFlags",
    [
        (
            name,
            Optional[value_type],
            # fairseq compares this one with a number before any model is built.
            field(default=default if name == "base_layers" else None, metadata=metadata),
        )
        for name, value_type, default, metadata in _OPTIONS
    ],
    bases=(FairseqDataclass,),
    namespace={"__doc__": __doc__, "__module__": __name__},
)

# What a checkpoint or a yaml file may hold.
UpdownTransformerConfig = make_dataclass(
    "UpdownTransformerConfig",
    [(name, Optional[value_type], None) for name, value_type in RETIRED.items()],
    bases=(UpdownTransformerFlags,),
    namespace={"__doc__": __doc__, "__module__": __name__},
)


class MixerChoice(NamedTuple):
    """What `--updown-mixer` says.

    Attributes:
        mixer: the class.
        size: its own size; 0 if it has none.
        ensemble: see :class:`~...mixers.ssa.StochasticAttention`; 0: none.
    """

    mixer: Any
    size: int
    ensemble: int


def parse_mixer(text: str) -> MixerChoice:
    """Parses `--updown-mixer`: NAME, NAME=SIZE or NAME=SIZExENSEMBLE.

    Raises:
        ValueError: no such mixer, or it has no such number.
    """
    flag = f"--updown-mixer {text}"
    name, equals, numbers = text.partition("=")
    if name == "blockwise":
        refuse(f"{flag}: blocks that see only themselves are --updown-slots 0")
    if name not in MIXERS:
        refuse(f"{flag}: choose {', '.join(MIXERS)}")
    mixer = MIXERS[name]
    default_size = getattr(mixer, "default_size", 0)
    if not equals:
        return MixerChoice(mixer, default_size, 0)
    if not default_size:
        refuse(f"{flag}: {name} has no size of its own; write {name}")
    size, times, ensemble = numbers.partition("x")
    if not _is_positive(size):
        refuse(f"{flag}: a size is a whole number above 0, like {name}={default_size}")
    if times and not mixer.has_ensemble:
        refuse(f"{flag}: {name} has no ensemble; write {name}={size}")
    if times and not _is_positive(ensemble):
        refuse(
            f"{flag}: an ensemble is a whole number above 0, like {name}={size}x4; without one, "
            f"{name}={size}, all keys are seen at inference"
        )
    return MixerChoice(mixer, int(size), int(ensemble or 0))


def _is_positive(text: str) -> bool:
    return re.fullmatch("[1-9][0-9]{0,8}", text) is not None


def parse_pool_layers(text: str, num_layers: int) -> List[int]:
    """Parses `--updown-pool-layers`: encoder layers, counted from 1."""
    return parse_layers("--updown-pool-layers", text, range(1, num_layers + 1), "encoder layer")


def parse_layers(flag: str, text: str, allowed: range, kind: str) -> List[int]:
    """Parses a comma-separated list of different numbers of layers, rising; it may be empty.

    Raises:
        ValueError: it is none, or one of them is not among those `allowed`.
    """
    stripped = text.strip()
    if not stripped:
        return []
    try:
        layers = [int(part) for part in stripped.split(",")]
    except ValueError:
        refuse(f"{flag} {text!r} is not a list of layer numbers; write it like '2,4'")
    for layer in layers:
        if layer not in allowed:
            first, last = allowed[0], allowed[-1]
            refuse(f"{flag} {text!r}: there is no {kind} {layer}; use {first} to {last}")
    if sorted(set(layers)) != layers:
        refuse(f"{flag} {text!r} must name each layer once, in rising order")
    return layers


def validate(args: Namespace) -> None:
    """Refuses options that are out of range or cannot work with compression.

    Raises:
        ValueError: naming the flag, its value and the remedy.
    """
    for name in ("updown_block_size", "updown_decoder_block_size", "updown_memory_size"):
        _require(args, name, getattr(args, name) >= 1, "it must be at least 1")
    for name in (
        "updown_pooled_block_size",
        "updown_slots",
        "updown_decoder_slots",
        "updown_cross_slots",
    ):
        _require(args, name, getattr(args, name) >= 0, "it must be 0 (off) or more")
    blocks = [("updown_decoder_slots", "updown_decoder_block_size")]
    if parse_mixer(args.updown_mixer).mixer is MIXERS["updown"]:  # no other has slots
        blocks.append(("updown_slots", "updown_block_size"))
        if args.updown_pooled_block_size:
            blocks.append(("updown_slots", "updown_pooled_block_size"))
    for slots, block in blocks:
        fits = getattr(args, slots) <= getattr(args, block)
        remedy = f"a block cannot have more slots than tokens; use at most {flag_of(block)}"
        _require(args, slots, fits, f"{remedy} = {getattr(args, block)}")
    rate, base = args.updown_pool_rate, args.updown_pooling_base
    remedy = "it must be a finite number of at least 1"
    _require(args, "updown_pool_rate", 1 <= rate < math.inf, remedy)
    # base ** score, of scores below 1, must stay well within float32.
    _require(args, "updown_pooling_base", 1 < base <= 1e6, "it must be above 1 and at most 1e6")
    _validate_stock(args)
    for name, choices in (
        ("updown_pooling", POOLINGS),
        ("updown_autocast", AUTOCAST),
        ("updown_step_precision", FORMATS),
    ):
        known = str(getattr(args, name)) in choices
        _require(args, name, known, f"choose {', '.join(choices)}")
    parse_pool_layers(args.updown_pool_layers, args.encoder_layers)
    for name in ("cross_self_attention", "base_layers"):
        remedy = "it does not work with compressed attention; leave it out"
        _require(args, name, not getattr(args, name, None), remedy)
    for name, reason in (
        ("adaptive_softmax_cutoff", "it gives rare words no logit of their own"),
        ("no_cross_attention", "without it nothing is read that could be copied"),
    ):
        excluded = args.updown_copy and getattr(args, name, None)
        _require(args, name, not excluded, f"not with --updown-copy, {reason}; leave out either")


def _validate_stock(args: Namespace) -> None:
    """Refuses what fairseq's own options would fail with late, or without a word."""
    sizes = ["layers", "embed_dim", "ffn_embed_dim", "attention_heads"]
    for name in (
        *(f"{stack}_{size}" for stack in ("encoder", "decoder") for size in sizes),
        *("max_source_positions", "max_target_positions", "quant_noise_pq_block_size"),
    ):
        _require(args, name, getattr(args, name) >= 1, "it must be at least 1")
    for stack in ("encoder", "decoder"):
        heads, embed_dim = f"{stack}_attention_heads", f"{stack}_embed_dim"
        width = getattr(args, embed_dim)
        fits = width % getattr(args, heads) == 0
        _require(args, heads, fits, f"it must divide {flag_of(embed_dim)} {width}")
    for name in (
        *("dropout", "attention_dropout", "activation_dropout", "adaptive_softmax_dropout"),
        *("encoder_layerdrop", "decoder_layerdrop"),
    ):
        _require(args, name, 0 <= getattr(args, name) < 1, "it must be from 0 to below 1")
    for name in ("quant_noise_pq", "quant_noise_scalar"):
        _require(args, name, 0 <= getattr(args, name) <= 1, "it must be from 0 to 1")
    tied = getattr(args, "tie_adaptive_weights", False) and args.adaptive_softmax_cutoff
    remedy = "there is no adaptive input whose weights could be shared; leave it out"
    _require(args, "tie_adaptive_weights", not tied, remedy)
    if getattr(args, "merge_src_tgt_embed", False):
        fits = args.encoder_embed_dim == args.decoder_embed_dim
        remedy = f"merged embeddings are of --encoder-embed-dim {args.encoder_embed_dim}"
        _require(args, "decoder_embed_dim", fits, remedy)
    shared = ("share_decoder_input_output_embed", "share_all_embeddings", "merge_src_tgt_embed")
    if any(getattr(args, name, False) for name in shared):
        own = getattr(args, "decoder_output_dim", None) or args.decoder_embed_dim
        remedy = f"shared embeddings are of --decoder-embed-dim {args.decoder_embed_dim}"
        _require(args, "decoder_output_dim", own == args.decoder_embed_dim, remedy)


def block_size_of_layer(cfg: Any, layer: int) -> int:
    """Tokens per encoder block in `layer`, counted from 0."""
    pool_layers = parse_pool_layers(cfg.updown_pool_layers, cfg.encoder.layers)
    is_pooled = bool(pool_layers) and layer >= pool_layers[0]
    return (is_pooled and cfg.updown_pooled_block_size) or cfg.updown_block_size


def flag_of(name: str) -> str:
    """An option as it is given on a command line."""
    return "--" + name.replace("_", "-")


def _require(args: Namespace, name: str, holds: bool, remedy: str) -> None:
    if not holds:
        refuse(f"{flag_of(name)} {getattr(args, name)}: {remedy}")


def refuse(message: str) -> NoReturn:
    """Raises what is to be raised for a mistake in the options."""
    raise ValueError(message)
