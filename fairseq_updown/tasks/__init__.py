"""Tasks that the plugin registers."""

from . import summarization

__all__ = ["summarization"]
