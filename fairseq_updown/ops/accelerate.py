"""Puts the fast forms into a model, which reads, and passes its tests, without."""

from typing import Any

from ..attention.encoder import SlotAttention
from .block_attention import attend_beside_slots
from .dropout import QuickDropout
from .feed_forward import use_relu_in_place
from .log_mixture import log_mixture_once
from .match_lengths import match_lengths_at_few
from .packed_linear import use_packed_weights


def accelerate(model: Any) -> Any:
    """Makes an encoder-decoder model use every faster form of its operators.

    Each of them falls back to the plain form where it does not apply: on another device, with
    dropout of attention, under hooks, with another release of torch.

    Args:
        model: an `UpdownTransformerModel`; its parameters and their names stay as they are.

    Returns:
        the model.
    """
    QuickDropout.replace_in(model)
    for module in model.modules():
        if isinstance(module, SlotAttention):
            module.attend_to_blocks = attend_beside_slots
        if hasattr(module, "feed_forward"):
            use_relu_in_place(module)
    model.decoder.log_mixture = log_mixture_once
    model.decoder.match_lengths = match_lengths_at_few
    use_packed_weights(model.decoder)
    return model
