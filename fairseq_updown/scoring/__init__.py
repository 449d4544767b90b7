"""Scorers for `fairseq-generate --scoring NAME`."""

from . import headings, rouge

__all__ = ["headings", "rouge"]
