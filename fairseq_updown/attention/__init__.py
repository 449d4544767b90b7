"""The mechanism: tokens compressed into slots, and attention to both."""
