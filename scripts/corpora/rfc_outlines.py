"""Outlines of RFCs: the headings that the table of contents names, found again in the body.

Also what a curriculum is made of: windows of a body with the headings they hold, and spans of it
that were damaged, to be restored.
"""

from __future__ import annotations

import bisect
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rfc_documents import Rfc, Unfit, indent, plain

from fairseq_updown.data.document_corpus import Pair
from fairseq_updown.scoring.headings import SEPARATOR, join_headings, word_starts

LEVELS = 2
MIN_HEADINGS = 3
MIN_FOUND = 0.5  # of the table's entries of these levels; else the table was misread
SPAN_WORDS = (20, 80)  # the shortest and the longest span to restore
DROPPED, REPLACED = 0.10, 0.05  # shares of a span's words

_NUMBER = re.compile(
    r"\s*(?:(?:section|appendix|annex|chapter|part)\s+[A-Z\d]\w{0,3}(?:[.-]\w+)*[.:]?"
    r"|\d+[a-z]?(?:[.-]\w+)*[.:)]?"
    r"|(?:[A-Z]|[IVXLC]+)(?:[.-]\d\w*(?:[.-]\w+)*[.:)]?|[.:)]))(?=\s|$)",
    re.I,
)
_WORD = re.compile(r"(?:section|appendix|annex|chapter|part)\s+", re.I)
_PAGE = re.compile(r"(?:\s*(?:\.\s*){2,}|\s+|\.)(?:[A-Z]-)?(?:\d+|[ivxl]+)\s*$", re.I)
_LEADER = re.compile(r"(?:\s*\.){2,}\s*$")


class Outline(NamedTuple):
    """A body and where its headings stand.

    Attributes:
        id: of the document.
        words: the body's.
        headings: the first word of each, and the first after it.
    """

    id: str
    words: list[str]
    headings: list[tuple[int, int]]

    def pair(self) -> Pair:
        """The body with its outline."""
        return self.window(0, len(self.words))._replace(id=self.id)

    def window(self, start: int, stop: int) -> Pair:
        """The words from ``start`` to ``stop`` with the headings that stand wholly among them."""
        held = [span for span in self.headings if start <= span[0] and span[1] <= stop]
        target = join_headings(" ".join(self.words[first:last]) for first, last in held)
        return Pair(f"{self.id}:{start}", " ".join(self.words[start:stop]), target)


# ------------------------------------------------------------------------- the table of contents


class Entry(NamedTuple):
    """A line of the table, and those that go on from it.

    Attributes:
        text: without leader and page.
        level: 1 is the highest; 0 is not known yet.
        indent: of its first line.
        ended: whether a page number stood at its end.
    """

    text: str
    level: int
    indent: int
    ended: bool


def number_level(line: str) -> int:
    """How many parts the number before a heading has; zeros at its end are none. 0 without one."""
    match = _NUMBER.match(line)
    if not match:
        return 0
    parts = re.findall(r"\d+|[A-Za-z]+", _WORD.sub("", match[0].strip()))
    while len(parts) > 1 and parts[-1] == "0":
        parts.pop()
    return len(parts)


def entries(lines: Sequence[str]) -> list[Entry]:
    """The entries of a table of contents, each with its level."""
    filled = [line for line in lines if line.strip()]
    paged = 2 * sum(_PAGE.search(line) is not None for line in filled) > len(filled)
    found: list[Entry] = []
    for line in filled:
        page = _PAGE.search(line) if paged else None
        text = _LEADER.sub("", line[: page.start()] if page else line).strip()
        level = number_level(line)
        if found and not level and goes_on(found[-1], line, paged):
            last = found[-1]
            found[-1] = last._replace(text=f"{last.text} {text}".strip(), ended=page is not None)
        elif text:
            found.append(Entry(text, level, indent(line), page is not None))
    return levelled(found)


def goes_on(entry: Entry, line: str, paged: bool) -> bool:
    """Whether an unnumbered line is the rest of an entry.

    In a table with pages it is set further in, and the entry has no page yet. In one without it
    stands below the title, behind the number: an entry without a number fills one line.
    """
    if paged:
        return indent(line) > entry.indent and not entry.ended
    number = _NUMBER.match(entry.text)
    if not number:
        return False
    rest = entry.text[number.end() :]
    return indent(line) >= entry.indent + len(entry.text) - len(rest.lstrip())


def levelled(found: list[Entry]) -> list[Entry]:
    """Entries without a number get the level of numbered ones as far in, or by the indentation."""
    numbered: dict[int, int] = {}
    for entry in found:
        if entry.level:
            numbered[entry.indent] = min(entry.level, numbered.get(entry.indent, entry.level))
    steps = sorted({entry.indent for entry in found})
    return [
        entry
        if entry.level
        else entry._replace(level=numbered.get(entry.indent, 1 + steps.index(entry.indent)))
        for entry in found
    ]


# ------------------------------------------------------------------------------------ the outline


def same(text: str) -> str:
    """What an entry and its heading share: letters and digits, without the word "Appendix"."""
    return plain(_WORD.sub("", text.strip(), count=1))


def longest_rise(choices: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """The longest run of (index, place), rising in both, with each place among its index' choices.

    Of runs of one length, the one that ends first.
    """
    ends: list[int] = []  # the least place that ends a run of each length
    chains: list[tuple[tuple[int, int], int]] = []  # each (index, place), and its forerunner
    last: list[int] = []  # in chains, of each of those ends
    for index, places in enumerate(choices):
        for place in sorted(places, reverse=True):
            length = bisect.bisect_left(ends, place)
            chains.append(((index, place), last[length - 1] if length else -1))
            ends[length : length + 1] = [place]
            last[length : length + 1] = [len(chains) - 1]
    run: list[tuple[int, int]] = []
    at = last[-1] if last else -1
    while at >= 0:
        step, at = chains[at]
        run.append(step)
    return run[::-1]


def outline(name: str, rfc: Rfc) -> Outline:
    """The headings in the table of contents, of the upper levels, that stand in the body, in order.

    A heading stands in paragraphs of its own: one, or two where it was too long for a line.

    Args:
        name: the document's, in the corpus

    Raises:
        Unfit: there is no table, or too few of its entries are found
    """
    listed = [entry for entry in entries(rfc.contents) if entry.level <= LEVELS]
    if not listed:
        raise Unfit("no table of contents")
    paragraphs = [paragraph.split() for paragraph in rfc.paragraphs]
    starts = [0]
    for paragraph in paragraphs:
        starts.append(starts[-1] + len(paragraph))
    places: dict[str, list[int]] = defaultdict(list)  # twice the paragraph, plus 1 if two
    for number, (text, after) in enumerate(zip(rfc.paragraphs, [*rfc.paragraphs[1:], ""])):
        places[same(text)].append(2 * number)
        if plain(after):
            places[same(f"{text} {after}")].append(2 * number + 1)
    run = longest_rise([places.get(same(entry.text), []) for entry in listed])
    if len(run) < MIN_FOUND * len(listed):
        raise Unfit("table of contents unlike the headings")
    spans = [(starts[place // 2], starts[place // 2 + 1 + place % 2]) for _, place in run]
    words = [word for paragraph in paragraphs for word in paragraph]
    spans = [span for span in spans if SEPARATOR not in words[slice(*span)]]
    if len(spans) < MIN_HEADINGS:
        raise Unfit(f"outline under {MIN_HEADINGS} headings")
    return Outline(name, words, spans)


def piece_places(document: Outline, pieces: Sequence[str]) -> list[int]:
    """The number of pieces before each heading, in the body encoded by sentencepiece."""
    starts = word_starts(pieces)
    return [starts[min(first, len(starts) - 1)] for first, _ in document.headings]


# ---------------------------------------------------------------------------------- the curriculum


def windows(document: Outline, size: int, seed: int) -> Iterator[Pair]:
    """All windows of ``size`` words (shorter at both ends) that hold a heading; cut by the seed."""
    offset = random.Random(f"{seed} {size} {document.id}").randrange(size)
    for start in range(offset - size, len(document.words), size):
        pair = document.window(max(0, start), start + size)
        if pair.target:
            yield pair


def damaged(words: Sequence[str], others: Sequence[str], rng: random.Random) -> list[str]:
    """Words of which some are left out, and some are replaced by others; at least one is left."""
    kept = []
    for word in words:
        draw = rng.random()
        if draw >= DROPPED:
            kept.append(rng.choice(others) if draw < DROPPED + REPLACED else word)
    return kept or [words[0]]


def denoised(document: Outline, count: int, seed: int) -> Iterator[Pair]:
    """``count`` spans, spread over the document: damaged as the source, whole as the target."""
    rng = random.Random(f"{seed} spans {document.id}")
    size = len(document.words)
    for number in range(count):
        length = min(size, rng.randint(*SPAN_WORDS))
        start = int((number + rng.random()) * (size - length + 1) / count)
        span = document.words[start : start + length]
        source = " ".join(damaged(span, document.words, rng))
        yield Pair(f"{document.id}:{start}", source, " ".join(span))
