"""The `updown_transformer` model and its architectures."""

from .architectures import ARCHITECTURES
from .config import UpdownTransformerConfig
from .model import UpdownTransformerModel

__all__ = ["ARCHITECTURES", "UpdownTransformerConfig", "UpdownTransformerModel"]
