"""The installed commands, and what they share."""

import logging

# Importing fairseq turns logging on for all; warnings are enough in a script.
for _name in ("fairseq", "absl"):
    logging.getLogger(_name).setLevel(logging.WARNING)
