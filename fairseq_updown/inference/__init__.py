"""Text in, summaries out."""
