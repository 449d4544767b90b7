"""ROUGE by the `rouge-score` library: one definition for validation, generation and our scripts."""

import re
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Dict, List

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer
from rouge_score import rouge_scorer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
# How fairseq writes an unknown token of a reference: it must not match one of the hypothesis, and
# it stays one word.
_UNKNOWN_REFERENCE = "<<unk>>"
_NO_MATCH = "unknowntokeninreference"


def split_sentences(text: str) -> List[str]:
    """Splits where white space follows any of .!? and precedes a capital letter."""
    return _SENTENCE_END.split(text)


class Rouge:
    """F1 of ROUGE-1, -2, -L and -Lsum (Lin, 2004), each in percent.

    Args:
        stemmer: apply the Porter stemmer, as published figures do.
    """

    def __init__(self, stemmer: bool = True):
        self._scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=stemmer)
        stemming = "Porter stemmer" if stemmer else "no stemmer"
        self.signature = f"rouge_score {metadata.version('rouge_score')}, mean F1, {stemming}"

    def __call__(self, hypothesis: str, reference: str) -> Dict[str, float]:
        """Scores one pair of detokenized texts; ROUGE-Lsum splits them into sentences.

        Returns:
            percent by name, see `ROUGE_TYPES`.
        """
        reference = reference.replace(_UNKNOWN_REFERENCE, _NO_MATCH)
        texts = ("\n".join(split_sentences(text)) for text in (reference, hypothesis))
        found = self._scorer.score(*texts)
        return {name: 100 * found[name].fmeasure for name in ROUGE_TYPES}


@dataclass
class RougeScorerConfig(FairseqDataclass):
    rouge_no_stemmer: bool = field(
        default=False, metadata={"help": "score without Porter stemming"}
    )


@register_scorer("rouge", dataclass=RougeScorerConfig)
class RougeScorer(BaseScorer):
    """`--scoring rouge`: mean F1 over the samples, of the texts that `fairseq-generate` prints.

    Detokenize them there, e.g. with `--remove-bpe sentencepiece`.
    """

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self._rouge = Rouge(stemmer=not cfg.rouge_no_stemmer)

    def means(self) -> Dict[str, float]:
        """Mean percent by name; zeros if nothing was added."""
        rows = [self._rouge(pred, ref) for ref, pred in zip(self.ref, self.pred)]
        return {name: sum(row[name] for row in rows) / max(1, len(rows)) for name in ROUGE_TYPES}

    def score(self) -> float:
        """Mean ROUGE-L in percent."""
        return self.means()["rougeL"]

    def result_string(self) -> str:
        figures = ", ".join(
            f"{name.replace('rouge', 'ROUGE-')} {value:.2f}" for name, value in self.means().items()
        )
        return f"{figures} ({len(self.ref)} samples, {self._rouge.signature})"
