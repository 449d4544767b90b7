"""Data sets of the plugin's tasks."""
