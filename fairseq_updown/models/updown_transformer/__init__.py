"""The `updown_transformer` model and its architectures."""

from .architectures import ARCHITECTURES
from .model import UpdownTransformerModel
from .options import UpdownTransformerConfig

__all__ = ["ARCHITECTURES", "UpdownTransformerConfig", "UpdownTransformerModel"]
