"""Up-down compression for fairseq's Transformer: long sources at a fraction of the cost.

Importing the package registers the `updown_transformer` model and its architectures, the
`summarization` task and the `rouge` scorer; give its folder to any fairseq command as `--user-dir`
(`python -m fairseq_updown` prints it). A program of your own imports `Summarizer`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference import Summarizer

__all__ = ["Summarizer", "checkpoints", "literals", "models", "prefetching", "scoring", "tasks"]
__version__ = "0.1.0"


@contextmanager
def _logging_left_alone() -> Iterator[None]:
    """fairseq's import turns logging on, at INFO, for the whole program; that is not ours to do."""
    root, fairseq = logging.getLogger(), logging.getLogger("fairseq")
    handlers, levels = root.handlers[:], (root.level, fairseq.level)
    fairseq.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        fairseq.setLevel(levels[1])


with _logging_left_alone():
    from . import checkpoints, literals, models, scoring, tasks
    from .data import prefetching


def __getattr__(name: str) -> Any:
    """`Summarizer` is imported when it is asked for: training does without sentencepiece."""
    if name == "Summarizer":
        from .inference import Summarizer

        return Summarizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
