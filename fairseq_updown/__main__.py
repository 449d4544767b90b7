"""Prints the folder to give to fairseq: `--user-dir "$(python -m fairseq_updown)"`."""

import os
import sys

sys.stdout.write(os.path.dirname(os.path.abspath(__file__)) + "\n")
