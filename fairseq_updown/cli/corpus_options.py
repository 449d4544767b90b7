"""The options of the programs that build a corpus."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.workers import available_cores
from .support import CommandParser, positive

WRITTEN = """\
Written under --out, with the endings src and tgt, or the two languages' codes:

    raw/{train,valid,test}.{src,tgt}   text, one document a line
    raw/{train,valid,test}.ids         where each line comes from
    raw/{train,valid,test}.body        sources without what precedes their text, where that is told
    spm/spm.model                      sentencepiece unigram model, trained on train only
    spm/dict.txt                       its pieces as a fairseq dictionary, for source and target
    spm/{train,valid,test}.{src,tgt}   encoded text, ready for:
        fairseq-preprocess --source-lang src --target-lang tgt --trainpref OUT/spm/train ...
            --srcdict OUT/spm/dict.txt --joined-dictionary
    report.json                        counts, lengths, and what was dropped and why
"""


def corpus_parser(prog: str, description: str | None, vocab_size: int = 8000) -> CommandParser:
    """A parser with the options of every corpus."""
    parser = CommandParser(prog, description)
    parser.epilog = WRITTEN
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="directory to create")
    add("--vocab-size", type=positive, default=vocab_size, metavar="N",
        help="sentencepiece pieces (default %(default)s)")  # fmt: skip
    add("--workers", type=positive, default=available_cores(), metavar="N",
        help="processes that look for copies and encode (default: one a core)")  # fmt: skip
    add("--seed", type=int, default=1, help="of the split and of what is drawn (default 1)")
    add("--overwrite", action="store_true", help="replace a corpus that this command made before")
    return parser


def add_sizes(add: Callable[..., Any], eval_help: str, eval_documents: int | None = None) -> None:
    """Add the options that say how many documents to take."""
    add("--eval-documents", type=positive, default=eval_documents, metavar="N", help=eval_help)
    add("--max-documents", type=positive, metavar="N", help="take only N, for a quick trial")


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """What a corpus of documents depends on, of the options above."""
    names = ("vocab_size", "eval_documents", "max_documents", "seed")
    return {name: getattr(args, name) for name in names}
