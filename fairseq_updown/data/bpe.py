"""fairseq's subword encoders, `--bpe`: the remedy for a missing file, and symbols that are none."""

from argparse import Namespace
from itertools import groupby
from typing import Any, Optional

from fairseq.data import encoders
from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from omegaconf import DictConfig

from ..errors import UserError, first_line


class ForgivingGPT2:
    """GPT-2's pieces, which are numbers; fairseq's own fails on whatever else is in a dictionary.

    That is `<<unk>>`, an unknown piece of a reference, and `madeupword0000`.

    Args:
        bpe: fairseq's.
    """

    def __init__(self, bpe: GPT2BPE):
        self.bpe = bpe
        self.spellings = bpe.bpe.decoder  # number -> a character for each byte

    def encode(self, text: str) -> str:
        return self.bpe.encode(text)

    def decode(self, text: str) -> str:
        """As fairseq's; what is no piece stays as it is."""
        runs = groupby(text.split(), self.is_piece)
        return "".join(self.bpe.decode(" ".join(run)) if is_piece else "".join(run)
                       for is_piece, run in runs)  # fmt: skip

    def is_piece(self, symbol: str) -> bool:
        return symbol.isdecimal() and int(symbol) in self.spellings

    def is_beginning_of_word(self, symbol: str) -> bool:
        return self.decode(symbol).startswith(" ")


def name_of(options: Any) -> Optional[str]:
    """What `--bpe` says; None: nothing.

    Args:
        options: fairseq's, of hydra or of the time before.
    """
    if isinstance(options, DictConfig):
        name = options.get("_name")
    else:
        name = getattr(options, "_name", None) or getattr(options, "bpe", None)
    return None if name is None else str(name)


def build_bpe(options: Any) -> Optional[Any]:
    """The encoder of `--bpe`, with `encode` and `decode` from string to string; None without one.

    Raises:
        UserError: it needs files that are not there.
    """
    name = name_of(options)
    if name is None:
        return None
    if name not in encoders.BPE_REGISTRY:
        raise UserError(f"--bpe {name}: choose {', '.join(encoders.BPE_REGISTRY)}")
    try:
        bpe = encoders.build_bpe(options)
    except Exception as error:  # each has its own ways to miss a file
        raise UserError(
            f"--bpe {name} cannot be built ({first_line(error)}): give the files that the text was "
            "encoded with, such as --gpt2-encoder-json and --gpt2-vocab-bpe, or "
            "--sentencepiece-model"
        ) from error
    return ForgivingGPT2(bpe) if isinstance(bpe, GPT2BPE) else bpe


def bpe_of_program(task_cfg: Any) -> Any:
    """The options of `--bpe` beside those of a task; empty where there are none."""
    parent = task_cfg._get_parent() if isinstance(task_cfg, DictConfig) else None
    found = parent.get("bpe") if isinstance(parent, DictConfig) else None
    return Namespace() if found is None else found
