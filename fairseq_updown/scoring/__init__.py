"""Scorers for `fairseq-generate --scoring NAME`."""

from . import rouge

__all__ = ["rouge"]
