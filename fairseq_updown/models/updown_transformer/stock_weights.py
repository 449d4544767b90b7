"""The weights of a stock `transformer`, put into a model whose attention has other parameters."""

import logging
import re
from typing import Collection, Dict, Set

from torch import Tensor

logger = logging.getLogger(__name__)

_ENCODER_ATTENTION = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.(.+)$")
_OWN_ELSEWHERE = re.compile(
    r"\.(compressor|count_bias|pools|memory_pool|copy_gate|selective_read)\."
)
# What the self-attention of a stock encoder layer has.
_STOCK_ATTENTION = {
    f"{name}_proj.{part}" for name in ("q", "k", "v", "out") for part in ("weight", "bias")
}


def fit_stock_weights(
    state_dict: Dict[str, Tensor], initial: Dict[str, Tensor], mixer: str
) -> None:
    """Lets a stock `transformer` checkpoint load: what it lacks keeps its initial value, and what
    the model's mixer has no use for is dropped; both are said in the log.

    Args:
        state_dict: of the checkpoint, changed in place.
        initial: the model's own.
        mixer: `--updown-mixer`.

    Raises:
        ValueError: the checkpoint is of a model of ours with other options.
    """
    own = {key for key in initial if is_own(key)}
    stored = {key for key in state_dict if is_own(key)}
    foreign = (stored - own) | _of_another_mixer(state_dict, initial)
    if foreign:
        names = ", ".join(sorted(foreign)[:3])
        raise ValueError(
            f"the checkpoint was trained with other --updown flags: {names} does not go with this "
            f"model and its --updown-mixer {mixer}; give the flags of its training ("
            "--updown-mixer, --updown-pool-layers, --updown-cross-slots, --updown-slots, "
            "--updown-decoder-slots, --updown-copy, --updown-no-gate, --updown-no-reweight)"
        )
    for key in sorted(own & stored):
        found, wanted = tuple(state_dict[key].shape), tuple(initial[key].shape)
        if found != wanted:
            raise ValueError(
                f"the checkpoint's {key} is {found}, this model's with --updown-mixer {mixer} "
                f"{wanted}: give the --updown-mixer and the embedding size of its training (a size "
                "is part of the mixer's name, as in luna=64)"
            )
    if own - stored:
        logger.warning(
            "%d parameters are not in the checkpoint and keep their initial values: %s",
            len(own - stored),
            _of_any_layer(own - stored),
        )
        state_dict.update((key, initial[key]) for key in own - stored)
    unused = {key for key in state_dict if _stock_part(key) and key not in initial}
    if unused:
        logger.warning(
            "%d parameters of the checkpoint are dropped, for --updown-mixer %s has none such: %s",
            len(unused),
            mixer,
            _of_any_layer(unused),
        )
        for key in unused:
            del state_dict[key]


def _of_another_mixer(state_dict: Dict[str, Tensor], initial: Dict[str, Tensor]) -> Set[str]:
    """The parameters of encoder attentions that are neither a stock one's nor this model's: they
    lack a stock projection, and are not made of what the model's are made of."""
    stored, wanted = _attention_parts(state_dict), _attention_parts(initial)
    return {
        f"encoder.layers.{layer}.self_attn.{part}"
        for layer in stored.keys() & wanted.keys()
        if not stored[layer] >= _STOCK_ATTENTION
        for part in stored[layer] ^ wanted[layer]
    }


def _attention_parts(keys: Collection[str]) -> Dict[str, Set[str]]:
    """Layer -> names of the parameters of its self-attention."""
    parts: Dict[str, Set[str]] = {}
    for layer, part in (m.groups() for m in map(_ENCODER_ATTENTION.match, keys) if m):
        parts.setdefault(layer, set()).add(part)
    return parts


def _stock_part(key: str) -> bool:
    found = _ENCODER_ATTENTION.match(key)
    return found is not None and found[2] in _STOCK_ATTENTION


def is_own(key: str) -> bool:
    """Whether no stock Transformer has such a parameter: whatever a mixer has besides the
    projections of an attention, and ours elsewhere."""
    in_attention = _ENCODER_ATTENTION.match(key)
    if in_attention and in_attention[2] not in _STOCK_ATTENTION:
        return True
    return _OWN_ELSEWHERE.search(key) is not None


def _of_any_layer(keys: Collection[str]) -> str:
    """The names, those that differ in the layer's number once."""
    return ", ".join(sorted({re.sub(r"\.\d+\.", ".*.", key) for key in keys}))
