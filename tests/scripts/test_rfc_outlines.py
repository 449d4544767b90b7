"""scripts/corpora/rfc_outlines.py: outlines from tables of contents, and what curricula are of."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rfc_documents import Rfc, Unfit, parse
from rfc_outlines import Outline, denoised, longest_rise, number_level, outline, windows

from fairseq_updown.scoring.headings import split_headings

TEXT = "   " + "\n   ".join(["Water is heated until it boils and is poured over leaves."] * 22)
ABSTRACT = "This memo says how teapots are exchanged between two hosts that have some of their own."

# Each line of the table, and what stands in the body; None: nothing.
PAGED = """\
Table of Contents

   1.  Introduction ................................................. 1
     1.1.  Words, and a heading that is too
           long for a line .......................................... 2
       1.1.1.  A third level ........................................ 2
   2.  Kettles of 1995. . . . . . . . . . . . . . . . . . . . . . . .  2
     2.1   Lids  12
   3.  Never Written ................................................ 3
   4.  References ................................................... 3
   Appendix A.  Cups ................................................ 4
     A.1.  Saucers .................................................. 4
   Glossary.......................................................... 5
"""
PAGELESS = """\
Table of Contents

   1.  Introduction
     1.1.  Words, and a heading that is too
           long for a line
       1.1.1.  A third level
   2.  Kettles of 1995
     2.1   Lids
   3.  Never Written
   4.  References
   Appendix A.  Cups
     A.1.  Saucers
   Glossary
"""
BODY = f"""\
1.  Introduction

{TEXT}

1.1.  Words, and a heading that is too
      long for a line

   See Section 2, Kettles of 1995.

1.1.1.  A third level

   Text.

2.  Kettles of 1995

2.1   Lids

{TEXT}

4.  References

   [1] Somebody, "A Book", 1990.

A.  Cups

   Text.

A.1.  Saucers

   Text.

Glossary

   Teapot: what tea is made in.
"""
UNNUMBERED = """\
Table of Contents

   Introduction
      Words
         Small Ones
   Kettles
"""
UNNUMBERED_BODY = f"""\
Introduction

{TEXT}

Words

   Text.

Small Ones

   Text.

Kettles

   Text.
"""
HEADINGS = [
    "1. Introduction",
    "1.1. Words, and a heading that is too long for a line",
    "2. Kettles of 1995",
    "2.1 Lids",
    "A. Cups",
    "A.1. Saucers",
    "Glossary",
]


def rfc(contents: str, body: str) -> Rfc:
    text = f"RFC: 756\n\nTeapots\n\nAbstract\n\n   {ABSTRACT}\n\n{contents}\n{body}"
    return parse(756, text.encode())


def headings(document: Outline) -> list[str]:
    return split_headings(document.pair().target)


@pytest.mark.parametrize("contents", [PAGED, PAGELESS], ids=["paged", "pageless"])
def test_the_outline_is_of_two_levels_of_the_headings_that_stand_in_the_body(contents: str) -> None:
    document = outline("rfc756", rfc(contents, BODY))
    assert headings(document) == HEADINGS
    source = document.pair().source
    assert source == rfc(contents, BODY).body
    assert source.startswith("1. Introduction Water is heated")  # the table is cut out
    assert "Never Written" not in source
    places = [first for first, _ in document.headings]
    assert places == sorted(places)
    assert source.split()[: places[2]][-2:] == ["level", "Text."]  # not where it is only named


def test_without_numbers_the_indentation_is_the_level() -> None:
    document = outline("x", rfc(UNNUMBERED, UNNUMBERED_BODY))
    assert headings(document) == ["Introduction", "Words", "Kettles"]


def test_an_entry_that_comes_twice_is_one_heading_though_it_ends_the_body() -> None:
    body = BODY.replace("\n   Teapot: what tea is made in.\n", "")
    document = outline("x", rfc(f"{PAGELESS}   Glossary\n", body))
    assert headings(document) == HEADINGS


def test_what_has_no_usable_table_is_told_by_reason() -> None:
    few = "Table of Contents\n\n   1.  Introduction\n   2.  Kettles of 1995\n"
    other = PAGELESS.replace("Introduction", "Prelude").replace("Kettles", "Pans")
    other = other.replace("Lids", "Covers").replace("Words", "Terms").replace("Cups", "Mugs")
    cases = {"": "no table of", few: "under 3 headings", other: "unlike the headings"}
    for contents, reason in cases.items():
        with pytest.raises(Unfit, match=reason):
            outline("x", rfc(contents, BODY))


def test_a_heading_that_holds_the_separator_is_left_out() -> None:
    texts = (text.replace("2.1   Lids", "2.1   Lids | Covers") for text in (PAGELESS, BODY))
    document = outline("x", rfc(*texts))
    assert headings(document) == [text for text in HEADINGS if "Lids" not in text]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("1. Teapots", 1),
        ("1.0 Teapots", 1),
        ("10.2. Teapots", 2),
        ("1.2.3 Teapots", 3),
        ("1b. Teapots", 2),
        ("IV. Teapots", 1),
        ("Appendix A. Teapots", 1),
        ("Appendix A.1. Teapots", 2),
        ("A.6.3.OBS.1. Teapots", 5),
        ("Teapots", 0),
        ("A Teapot", 0),
    ],
)
def test_the_number_says_the_level(line: str, level: int) -> None:
    assert number_level(line) == level


@given(st.lists(st.lists(st.integers(0, 6), max_size=3, unique=True), max_size=6))
def test_the_longest_rise_is_that_of_all_choices(choices: list[list[int]]) -> None:
    found = longest_rise(choices)
    assert all(place in choices[index] for index, place in found)
    for (index, place), (next_index, next_place) in itertools.pairwise(found):
        assert index < next_index
        assert place < next_place
    every = itertools.product(*([None, *places] for places in choices))
    taken = ([place for place in run if place is not None] for run in every)
    assert len(found) == max(len(t) for t in taken if all(a < b for a, b in itertools.pairwise(t)))


# ---------------------------------------------------------------------------------- the curriculum


def made_up(words: int = 1000) -> Outline:
    """Words that are their own numbers; a heading of three words at every fiftieth."""
    spans = [(first, first + 3) for first in range(0, words - 3, 50)]
    return Outline("x", [f"w{number}" for number in range(words)], spans)


@pytest.mark.parametrize("size", [1, 7, 120, 5000])
def test_windows_hold_the_headings_that_stand_wholly_in_them(size: int) -> None:
    document = made_up()
    held = []
    for pair in windows(document, size, seed=1):
        words = pair.source.split()
        start = int(words[0][1:])
        assert len(words) <= size
        assert words == document.words[start : start + len(words)]
        assert pair.id == f"x:{start}"
        whole = [f"w{a} w{a + 1} w{a + 2}" for a, b in document.headings]
        assert split_headings(pair.target) == [text for text in whole if text in pair.source]
        held += split_headings(pair.target)
    cut = 0 if size > 1000 else 1000 // size + 1  # of the headings, at most one a border
    assert len(set(held)) == len(held) >= len(document.headings) - cut


def test_windows_and_spans_depend_on_the_seed_alone() -> None:
    for cut, size in ((windows, 120), (denoised, 9)):
        pairs = [list(cut(made_up(), size, seed)) for seed in (1, 1, 2)]
        assert pairs[0] == pairs[1] != pairs[2]


def test_spans_lose_a_tenth_of_their_words_and_a_twentieth_is_replaced() -> None:
    document = made_up(4000)
    pairs = list(denoised(document, 400, seed=1))
    assert len(pairs) == 400
    words = kept = strange = 0
    starts = []
    for pair in pairs:
        target, source = pair.target.split(), pair.source.split()
        start = document.words.index(target[0])
        assert target == document.words[start : start + len(target)]
        assert 20 <= len(target) <= 80
        starts.append(start)
        words += len(target)
        kept += len(source)
        strange += sum((Counter(source) - Counter(target)).values())
    assert kept / words == pytest.approx(0.90, abs=0.01)
    assert strange / words == pytest.approx(0.05, abs=0.01)
    assert max(starts) > 3800
    assert min(starts) < 100


def test_a_document_shorter_than_a_span_is_one() -> None:
    rng = random.Random(0)
    document = Outline("x", [str(rng.random()) for _ in range(5)], [(0, 1)])
    assert [pair.target for pair in denoised(document, 2, 1)] == [" ".join(document.words)] * 2
