"""Outlines scored by their headings: how many are found, and where in the document they stand."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

SEPARATOR = "|"  # a word between headings: one sentencepiece, and in no heading

_ROMAN = r"(?=[ivxlc])c{0,3}(?:xc|xl|l?x{0,3})(?:ix|iv|v?i{0,3})"
_NUMBER = re.compile(
    r"(?:(?:section|appendix|annex|chapter|part)\s+"
    rf"(?:\d+[a-z]?|([a-z])\1?\d{{0,2}}|{_ROMAN})(?=[\s.:)-])(?:[.-]\w{{1,4}})*"
    rf"|(?!i\.e\.|e\.g\.)(?:\d+(?:[a-z](?=[.:)-]))?|(?:[a-z]|{_ROMAN})(?=[.:)]))"
    r"(?:\.\w{1,4}|-(?:\d+|[a-z](?=[.:)])))*)"  # of further levels
    r"[.:)]*(?=\s)"
)
_WORD = re.compile(r"\w+")


def join_headings(headings: Iterable[str]) -> str:
    """An outline on a line."""
    return f" {SEPARATOR} ".join(headings)


def split_headings(text: str) -> List[str]:
    """The headings of an outline on a line; empty ones are none."""
    found: List[List[str]] = [[]]
    for word in text.split():
        if word == SEPARATOR:
            found.append([])
        else:
            found[-1].append(word)
    return [" ".join(words) for words in found if words]


def normalised(heading: str) -> str:
    """The words of a heading in lower case, without its number, if it has others."""
    folded = " ".join(heading.casefold().split())
    words = _WORD.findall(_NUMBER.sub("", folded, count=1) if _NUMBER.match(folded) else folded)
    return " ".join(words or _WORD.findall(folded))


class Figures(NamedTuple):
    """Headings counted.

    Attributes:
        references: how many there are to find.
        hypotheses: how many were written.
        found: how many of the former are among the latter.
    """

    references: int = 0
    hypotheses: int = 0
    found: int = 0

    def plus(self, references: int = 0, hypotheses: int = 0, found: int = 0) -> "Figures":
        """With more of them."""
        return Figures(
            self.references + references, self.hypotheses + hypotheses, self.found + found
        )

    def scores(self) -> Dict[str, float]:
        """Precision, recall and F1 in percent; 0 of nothing."""
        return {
            "precision": 100 * self.found / max(1, self.hypotheses),
            "recall": 100 * self.found / max(1, self.references),
            "F1": 200 * self.found / max(1, self.hypotheses + self.references),
        }


def matched(headings: Sequence[str], others: Sequence[str]) -> List[bool]:
    """For each normalised heading whether it is among the others, each of which serves once."""
    left = Counter(others)
    flags = []
    for heading in headings:
        flags.append(left[heading] > 0)
        left[heading] -= 1
    return flags


def count(hypothesis: str, reference: str) -> Figures:
    """The headings of one outline, compared with the true one."""
    theirs, ours = (
        [normalised(heading) for heading in split_headings(text)]
        for text in (reference, hypothesis)
    )
    return Figures(len(theirs), len(ours), sum(matched(theirs, ours)))


# -------------------------------------------------------------------------------------- places


def word_starts(pieces: Sequence[str]) -> List[int]:
    """The number of pieces before each word, in text encoded by sentencepiece."""
    return [number for number, piece in enumerate(pieces) if piece.startswith("\u2581")]


class Source:
    """A document in which headings are looked up.

    Args:
        text: on a line.
        pieces: the same encoded by sentencepiece, if places are to be counted in pieces.
    """

    def __init__(self, text: str, pieces: Optional[Sequence[str]] = None):
        self.words = text.split()
        self._pieces = None if pieces is None else word_starts(pieces)
        self._tokens: List[str] = []
        self._owners: List[int] = []  # the word that each token is of
        self._starts: Dict[str, List[int]] = defaultdict(list)
        for number, word in enumerate(self.words):
            for token in _WORD.findall(word.casefold()):
                self._starts[token].append(len(self._tokens))
                self._tokens.append(token)
                self._owners.append(number)

    def _find(self, tokens: List[str], start: int) -> Optional[int]:
        """The first token of the run `tokens`, not before `start`."""
        for place in self._starts.get(tokens[0], ()) if tokens else ():
            if place >= start and self._tokens[place : place + len(tokens)] == tokens:
                return place
        return None

    def quarter(self, word: int) -> int:
        """The quarter of the document that a word stands in, from 0."""
        return 4 * word // len(self.words)

    def length(self, word: int) -> int:
        """The pieces before a word, or the words where there are no pieces."""
        # The encoder's normalisation may join words: the last is then out of the list.
        return word if self._pieces is None else self._pieces[min(word, len(self._pieces) - 1)]

    def places(self, headings: Sequence[str]) -> List[Optional[int]]:
        """The number of words before each heading; None for one that stands nowhere.

        Looked up with its number and then without, behind the heading before it and then from the
        start.
        """
        found: List[Optional[int]] = []
        behind = 0
        for heading in headings:
            forms = (_WORD.findall(heading.casefold()), normalised(heading).split())
            tries = ((form, start) for form in forms for start in (behind, 0))
            place = next((p for p in (self._find(*args) for args in tries) if p is not None), None)
            if place is not None:
                behind = place + 1
            found.append(None if place is None else self._owners[place])
        return found


class Placed(NamedTuple):
    """The headings of one document with their places, in words.

    Attributes:
        source: the document.
        references: the true ones.
        found: for each of those whether it was written.
        wrong: those written that are not true; None stands nowhere in the document.
    """

    source: Source
    references: List[Optional[int]]
    found: List[bool]
    wrong: List[Optional[int]]


def place(source: Source, hypothesis: str, reference: str) -> Placed:
    """Finds where the headings of two outlines stand in their document."""
    theirs, ours = split_headings(reference), split_headings(hypothesis)
    own, true = ([normalised(heading) for heading in headings] for headings in (ours, theirs))
    wrong = [heading for heading, right in zip(ours, matched(own, true)) if not right]
    return Placed(source, source.places(theirs), matched(true, own), source.places(wrong))


def by_bin(
    samples: Iterable[Placed], bin_number: Callable[[Source, int], int]
) -> Dict[int, Figures]:
    """The headings counted by where they stand; a right one counts where the true one stands.

    Args:
        bin_number: of a document and the words in it before a heading.

    Returns:
        figures by the number; -1 is of headings that stand nowhere.
    """
    figures: Dict[int, Figures] = defaultdict(Figures)

    def bin_of(sample: Placed, word: Optional[int]) -> int:
        return -1 if word is None else bin_number(sample.source, word)

    for sample in samples:
        for word, right in zip(sample.references, sample.found):
            number = bin_of(sample, word)
            figures[number] = figures[number].plus(1, int(right), int(right))
        for word in sample.wrong:
            number = bin_of(sample, word)
            figures[number] = figures[number].plus(hypotheses=1)
    return dict(sorted(figures.items()))


# -------------------------------------------------------------------------------------- fairseq


@dataclass
class HeadingsScorerConfig(FairseqDataclass):
    pass


@register_scorer("headings", dataclass=HeadingsScorerConfig)
class HeadingsScorer(BaseScorer):
    """`--scoring headings`: the headings found, over all samples; F1 is the score.

    Detokenize the texts, e.g. with `--remove-bpe sentencepiece`.
    """

    def figures(self) -> Figures:
        """The headings of all samples."""
        total = Figures()
        for reference, hypothesis in zip(self.ref, self.pred):
            total = total.plus(*count(hypothesis, reference))
        return total

    def score(self) -> float:
        """F1 in percent."""
        return self.figures().scores()["F1"]

    def result_string(self) -> str:
        figures = self.figures()
        shown = ", ".join(f"{name} {value:.2f}" for name, value in figures.scores().items())
        return f"headings: {shown} ({figures.references} in {len(self.ref)} samples)"
