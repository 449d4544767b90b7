"""Up-down compression for fairseq's Transformer: long sources at a fraction of the cost.

Importing the package registers the `updown_transformer` model and its architectures, the
`summarization` task and the `rouge` scorer; give its folder to any fairseq command as `--user-dir`
(`python -m fairseq_updown` prints it).
"""

from . import checkpoints, models, scoring, tasks

__all__ = ["checkpoints", "models", "scoring", "tasks"]
__version__ = "0.1.0"
