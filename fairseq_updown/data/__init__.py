"""Data sets of the plugin's tasks, corpora, and files that are written whole or not at all."""
