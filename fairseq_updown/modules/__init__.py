"""The mechanism itself: torch and `fairseq.modules` only, nothing of models or tasks."""
