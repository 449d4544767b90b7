"""`--encoder-layers-to-keep`, `--decoder-layers-to-keep`: some layers of a larger model.

All options describe the larger model, as those in its checkpoint do; the pruned one is built, and
stored, as a model of its own. A pool stays where it was: after the kept ones of the layers that it
came after.
"""

import re
from argparse import Namespace
from typing import Any, Dict, List, NamedTuple

from ...mixers.base import Mixer
from .options import parse_layers, parse_mixer, parse_pool_layers, refuse

_LAYER = re.compile(r"(encoder|decoder)\.(layers|pools)\.(\d+)\.(.*)")


class Kept(NamedTuple):
    """Which layers of a larger stack there are.

    Attributes:
        layers: their numbers there, counted from 0, rising.
        size: the number of layers of the larger stack.
        pools: the layers after which the larger stack pools, counted from 1, and where here.
    """

    layers: List[int]
    size: int
    pools: Dict[int, int]


def prune_options(args: Namespace) -> Dict[str, Kept]:
    """Turns the options of a larger model into those of the pruned one, in place.

    Returns:
        by stack, `encoder` or `decoder`, what was kept; nothing for a stack that was not pruned.

    Raises:
        ValueError: no such layers; or what would be left of the encoder is no clear model.
    """
    found: Dict[str, Kept] = {}
    for stack in ("encoder", "decoder"):
        name, size = f"{stack}_layers_to_keep", getattr(args, f"{stack}_layers")
        text = getattr(args, name, None) or ""
        layers = parse_layers(f"--{stack}-layers-to-keep", text, range(size), f"{stack} layer")
        if layers:
            pools = _kept_pools(args, layers) if stack == "encoder" else {}
            found[stack] = Kept(layers, size, pools)
            setattr(args, f"{stack}_layers", len(layers))
        setattr(args, name, "")
    if "encoder" in found:
        args.updown_pool_layers = ",".join(map(str, found["encoder"].pools.values()))
    return found


def _kept_pools(args: Namespace, layers: List[int]) -> Dict[int, int]:
    flag = f"--encoder-layers-to-keep {args.encoder_layers_to_keep}"
    mixer: Any = parse_mixer(args.updown_mixer).mixer
    if issubclass(mixer, Mixer) and mixer.counts_layers:
        refuse(
            f"{flag}: with --updown-mixer {args.updown_mixer} what a layer does follows from its "
            "number, so that no layer can go; leave the flag out"
        )
    pools = {
        pool: sum(layer < pool for layer in layers)
        for pool in parse_pool_layers(args.updown_pool_layers, args.encoder_layers)
    }
    if 0 in pools.values() or len(set(pools.values())) < len(pools):
        refuse(
            f"{flag}: of the layers before each of --updown-pool-layers {args.updown_pool_layers}, "
            "and between any two of them, at least one must be kept (these count from 1, those to "
            "keep from 0)"
        )
    return pools


def prune_state(state: Dict[str, Any], kept: Dict[str, Kept]) -> Dict[str, Any]:
    """The parameters of the pruned model among those of the larger; its own come back as they are.

    Raises:
        ValueError: they are of a model of yet another number of layers.
    """
    names = {name: _LAYER.fullmatch(name) for name in state}
    numbers: Dict[str, set] = {stack: set() for stack in kept}
    for match in names.values():
        if match is not None and match[1] in kept and match[2] == "layers":
            numbers[match[1]].add(int(match[3]))
    whole = {stack for stack in kept if _is_whole(stack, kept[stack], len(numbers[stack]))}
    pruned = {}
    for name, value in state.items():
        match = names[name]
        if match is not None and match[1] in whole:
            own, number = kept[match[1]], int(match[3])
            places = dict(zip(own.layers, range(own.size))) if match[2] == "layers" else own.pools
            if number not in places:
                continue
            name = f"{match[1]}.{match[2]}.{places[number]}.{match[4]}"
        pruned[name] = value
    return pruned


def _is_whole(stack: str, kept: Kept, stored: int) -> bool:
    if stored not in (kept.size, len(kept.layers)):
        refuse(
            f"--{stack}-layers-to-keep {','.join(map(str, kept.layers))} of {kept.size} layers, "
            f"but the checkpoint has {stored}: give --{stack}-layers {stored}"
        )
    return stored == kept.size
