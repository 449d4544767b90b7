"""ROUGE by the `rouge-score` library: one definition for validation, generation and our scripts.

rouge-score's own words are of ASCII letters and digits, so that texts in other scripts score 0.
Ours are of any letters, in the form NFKC, which sentencepiece writes; of ASCII texts they are the
same.
"""

import unicodedata
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Dict, List

import regex
from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer
from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_SENTENCE_END = regex.compile(
    rf"(?V1)(?<=[.!?])\s+(?=\p{{Lu}})|(?<=\u3002)(?=.)|(?<=[!?\uff01\uff1f])(?=[{_SPACELESS}])"
)
_WORD = regex.compile(rf"(?V1)[{_SPACELESS}]|[\w--[_{_SPACELESS}]]+")
# How fairseq writes an unknown token of a reference: it must not match one of the hypothesis, and
# it stays one word.
_UNKNOWN_REFERENCE = "<<unk>>"
_NO_MATCH = "unknowntokeninreference"


def split_sentences(text: str) -> List[str]:
    """Splits where white space follows any of .!? and precedes a capital letter; in Chinese and
    Japanese, after what these are there."""
    return _SENTENCE_END.split(text)


class Words(Tokenizer):
    """Words of any letters, marks and digits, in lower case; characters of scripts without spaces.

    Args:
        stemmer: apply the Porter stemmer to those of ASCII letters.
    """

    def __init__(self, stemmer: bool):
        self._ascii = DefaultTokenizer(stemmer)

    def tokenize(self, text: str) -> List[str]:
        if text.isascii():
            return self._ascii.tokenize(text)
        words: List[str] = []
        for word in _WORD.findall(text.lower()):
            words += self._ascii.tokenize(word) if word.isascii() else [word]
        return words


class Rouge:
    """F1 of ROUGE-1, -2, -L and -Lsum (Lin, 2004), each in percent.

    Args:
        stemmer: apply the Porter stemmer, as published figures do.
    """

    def __init__(self, stemmer: bool = True):
        self._scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=Words(stemmer))
        stemming = "Porter stemmer" if stemmer else "no stemmer"
        version = metadata.version("rouge_score")
        self.signature = f"rouge_score {version}, mean F1, {stemming}, words of any script"

    def __call__(self, hypothesis: str, reference: str) -> Dict[str, float]:
        """Scores one pair of detokenized texts; ROUGE-Lsum splits them into sentences.

        Returns:
            percent by name, see `ROUGE_TYPES`.
        """
        reference = reference.replace(_UNKNOWN_REFERENCE, _NO_MATCH)
        plain = (unicodedata.normalize("NFKC", text) for text in (reference, hypothesis))
        texts = ("\n".join(split_sentences(text)) for text in plain)
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
