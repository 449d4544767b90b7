"""Models that the plugin registers."""

from . import updown_transformer

__all__ = ["updown_transformer"]
