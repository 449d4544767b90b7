"""Configurations as earlier versions stored them in checkpoints, put into today's options."""

from typing import Any, Dict

# Options that are gone, with their types: no flags any more, but still fields of the configuration,
# for fairseq drops what is no field before any model sees it.
RETIRED: Dict[str, Any] = {"updown_mixer_size": int, "updown_mixer_ensemble": int}
# Options that are newer than those, at what the model did without; an architecture may set more.
ADDED: Dict[str, Any] = {"updown_pooled_block_size": 0}


def presets_of_then(config: Any) -> Dict[str, Any]:
    """What goes before an architecture's presets of today; nothing for a configuration of today.

    Args:
        config: flat options with a method `get`.
    """
    return ADDED if any(config.get(name) is not None for name in RETIRED) else {}


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
    size, ensemble = (config.pop(name, None) for name in RETIRED)
    if size is None and ensemble is None:
        return config
    config.update((name, off) for name, off in added.items() if config.get(name) is None)
    mixer = str(config.get("updown_mixer") or "updown")
    if mixer == "blockwise":
        return {**config, "updown_mixer": "updown", "updown_slots": 0}
    if "=" not in mixer:  # or the user has put a new one in its place
        if ensemble:
            mixer = f"{mixer}={size or 256}x{ensemble}"  # of ssa alone, whose default was 256
        elif size:
            mixer = f"{mixer}={size}"
    return {**config, "updown_mixer": mixer}
