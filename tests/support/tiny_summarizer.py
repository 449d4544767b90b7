"""A small checkpoint with a sentencepiece model, for the programs that read text."""

import random
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

from commands import PLUGIN, run

from fairseq_updown.data.files import write_lines
from fairseq_updown.data.parallel_text import train_sentencepiece
from fairseq_updown.inference.summarizer import Summarizer

LIMIT = 32  # source tokens that the checkpoint takes
LETTERS = "bcefghijklmnoqrtuv"  # so that "<pad>" is one unknown piece
SEARCH: Dict[str, Any] = dict(min_len=1, max_len_b=20)
FLAGS = ["--min-len", 1, "--max-len-b", 20, "--device", "cpu"]


class Toy(NamedTuple):
    """Some documents, and a checkpoint that has learned a little of repeating their starts."""

    folder: Path
    checkpoint: Path
    documents: List[str]

    def load(self, **options: Any) -> Summarizer:
        return Summarizer.load(self.checkpoint, **{**SEARCH, **options})


def make_documents() -> List[str]:
    """The first 12 are the test split, 10 more the validation split; the fourth exceeds LIMIT."""
    rng = random.Random(0)
    words = ["".join(rng.choices(LETTERS, k=rng.randrange(2, 6))) for _ in range(40)]
    sentences = [
        " ".join(rng.choices(words, k=rng.randrange(3, 8))).capitalize() + "." for _ in range(970)
    ]
    documents = [" ".join(sentences[3 * i : 3 * i + rng.randrange(1, 4)]) for i in range(322)]
    documents[3] = " ".join(sentences[:10])
    return documents


def train(folder: Path) -> None:
    """Writes the data, in `bin`, and the checkpoint."""
    documents = make_documents()
    splits = {"test": documents[:12], "valid": documents[12:22], "train": documents[22:]}
    (folder / "bin").mkdir()
    model = train_sentencepiece(splits["train"], 110, folder / "bin" / "spm.model")
    pieces = [model.id_to_piece(number) for number in range(1, model.get_piece_size())]
    for suffix, length in (("src", None), ("tgt", 8)):
        write_lines(folder / "bin" / f"dict.{suffix}.txt", (f"{piece} 1" for piece in pieces))
        for split, texts in splits.items():
            encoded = [" ".join(model.encode(text, out_type=str)[:length]) for text in texts]
            write_lines(folder / "bin" / f"{split}.src-tgt.{suffix}", encoded)
    run(
        *("fairseq-train", folder / "bin", "--user-dir", PLUGIN, "--cpu", "--seed", 1),
        *("--dataset-impl", "raw", "--source-lang", "src", "--target-lang", "tgt"),
        *("--arch", "updown_transformer_tiny", "--share-all-embeddings", "--dropout", 0),
        *("--updown-block-size", 8, "--updown-slots", 2, "--truncate-source"),
        *("--max-source-positions", LIMIT, "--max-target-positions", 40),
        *("--optimizer", "adam", "--lr", 0.005, "--criterion", "cross_entropy"),
        *("--max-tokens", 400, "--required-batch-size-multiple", 1, "--max-update", 60),
        *("--save-dir", folder, "--no-epoch-checkpoints", "--disable-validation"),
    )


def toy_of(folder: Path) -> Toy:
    return Toy(folder, folder / "checkpoint_last.pt", make_documents()[:12])
