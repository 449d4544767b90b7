"""Text in, summaries out: a trained checkpoint loaded for use."""

from .summarizer import Document, Summarizer, Summary

__all__ = ["Document", "Summarizer", "Summary"]
