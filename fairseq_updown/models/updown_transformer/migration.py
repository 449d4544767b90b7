"""Configurations as earlier versions stored them in checkpoints, put into today's options."""

import logging
from typing import Any, Dict

logger = logging.getLogger(__name__)

# Options that are gone, with their types: no flags any more, but still fields of the configuration,
# for fairseq drops what is no field before any model sees it.
RETIRED: Dict[str, Any] = {"updown_mixer_size": int, "updown_mixer_ensemble": int}
# Options that are newer than all of `_ALWAYS`, at what the model did without; an architecture may
# set more. What is stored is complete: who has all of `_ALWAYS` and lacks one of these is older.
ADDED: Dict[str, Any] = {"updown_pooled_block_size": 0}
_ALWAYS = (
    *("updown_mixer", "updown_block_size", "updown_slots", "updown_pool_layers"),
    *("updown_pool_rate", "updown_memory_size", "updown_decoder_block_size"),
    *("updown_decoder_slots", "updown_cross_slots", "updown_pooling", "updown_pooling_base"),
    *("updown_no_gate", "updown_no_reweight"),
)


def presets_of_then(config: Any) -> Dict[str, Any]:
    """What goes before an architecture's presets of today; nothing for a configuration of today.

    Args:
        config: flat options with a method `get`.
    """
    is_stored = all(config.get(name) is not None for name in _ALWAYS)
    has_retired = any(config.get(name) is not None for name in RETIRED)
    return ADDED if is_stored or has_retired else {}


def migrate(config: Dict[str, Any]) -> Dict[str, Any]:
    """The same model in today's options; a configuration of today comes back as it is.

    - `updown_mixer_size` S and `updown_mixer_ensemble` E are part of `updown_mixer`: `luna=S`,
      `ssa=SxE`; 0 was the mixer's default, or no ensemble.
    - What is newer is off, though the architecture sets it today.
    - The mixer `blockwise` is `updown` without slots. Today's flag refuses that name, so it is
      taken only from a configuration that has the retired options, as all stored ones had.

    Args:
        config: flat options; None where nobody set them.
    """
    config, added = dict(config), presets_of_then(config)
    for name, off in added.items():
        if config.get(name) is None:
            logger.info("%s is %s, as in checkpoints that are older than it", name, off)
            config[name] = off
    size, ensemble = (config.pop(name, None) for name in RETIRED)
    if size is None and ensemble is None:
        return config
    mixer = str(config.get("updown_mixer") or "updown")
    if mixer == "blockwise":
        return {**config, "updown_mixer": "updown", "updown_slots": 0}
    if "=" not in mixer:  # or the user has put a new one in its place
        if ensemble:
            mixer = f"{mixer}={size or 256}x{ensemble}"  # of ssa alone, whose default was 256
        elif size:
            mixer = f"{mixer}={size}"
    return {**config, "updown_mixer": mixer}
