"""Outlines scored by their headings, and by where these stand."""

from argparse import Namespace
from typing import Any, List, Optional

import pytest
from fairseq.registry import REGISTRIES

from fairseq_updown.scoring.headings import (
    Figures,
    HeadingsScorer,
    Source,
    by_bin,
    count,
    join_headings,
    normalised,
    place,
    split_headings,
)


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("3.1.  Use of  Kettles", "use of kettles"),
        ("3.1 USE OF KETTLES", "use of kettles"),
        ("3a-i. Use of Kettles", "use of kettles"),
        ("IV. Use of Kettles", "use of kettles"),
        ("A. Use of Kettles", "use of kettles"),
        ("Appendix A.1. Use of Kettles", "use of kettles"),
        ("A.1: Use-of-Kettles?", "use of kettles"),
        ("Kettles of 1995", "kettles of 1995"),
        ("A Use of Kettles", "a use of kettles"),
        ("Mixed Kettles", "mixed kettles"),
        ("Chapter XIV: Use of Kettles", "use of kettles"),
        ("Appendix A1. Use of Kettles", "use of kettles"),
        ("Annex AA Use of Kettles", "use of kettles"),
        ("Section VIII-A Use of Kettles", "use of kettles"),
        ("2-D Kettles", "2 d kettles"),
        ("I.e. Kettles", "i e kettles"),
        ("Part of Kettles", "part of kettles"),
        ("Section Type Kettles", "section type kettles"),
        ("Civil: Kettles", "civil kettles"),
        ("24-hour Kettles", "24 hour kettles"),
        ("3D Kettles", "3d kettles"),
        ("Section 3", "section 3"),
        ("7.", "7"),
        ("...", ""),
    ],
)
def test_case_numbers_in_front_punctuation_and_spaces_do_not_count(
    heading: str, expected: str
) -> None:
    assert normalised(heading) == expected


def test_headings_are_split_at_the_separator_alone() -> None:
    headings = ["1. A||B", "2. C"]
    assert join_headings(headings) == "1. A||B | 2. C"
    assert split_headings(join_headings(headings)) == headings
    assert split_headings(" | 1.  A |  | ") == ["1. A"]
    assert split_headings("") == []


@pytest.mark.parametrize(
    ("hypothesis", "expected"),
    [
        ("1. One | 2. Two | 3. Three | 4. Two", (4, 4, 4)),
        ("9. two | ONE", (4, 2, 2)),
        ("Two | Two | Two | Four", (4, 4, 2)),
        ("One | One", (4, 2, 1)),
        ("", (4, 0, 0)),
    ],
)
def test_each_heading_is_found_once_in_any_order(hypothesis: str, expected: Any) -> None:
    assert count(hypothesis, "1. One | 2. Two | 3. Three | 4. Two") == expected


def test_scores_are_of_the_counts() -> None:
    scores = Figures(references=8, hypotheses=4, found=2).scores()
    assert scores == {"precision": 50.0, "recall": 25.0, "F1": pytest.approx(100 / 3)}
    assert set(Figures().scores().values()) == {0.0}


SOURCE = "1. Tea It is hot. See 2. Use below. 1.1 Tea! Leaves. 2. Use Tea is drunk. Glossary Cup."
#         0  1   2  3  4    5   6  7    8      9   10   11      12 13  14  15 16     17       18


@pytest.mark.parametrize(
    ("headings", "places"),
    [
        (["1. Tea", "1.1. Tea", "2. Use", "Glossary"], [0, 9, 12, 17]),
        (["7. tea", "Tea", "Tea"], [1, 10, 14]),
        (["Glossary", "1. Tea"], [17, 0]),
        (["Milk", "3. Cup", "|"], [None, 18, None]),
    ],
)
def test_places_follow_the_order_of_the_headings(
    headings: List[str], places: List[Optional[int]]
) -> None:
    assert Source(SOURCE).places(headings) == places


def test_headings_are_counted_where_they_stand_and_wrong_ones_too() -> None:
    sample = place(
        Source(SOURCE), "1. Tea | Milk | Glossary | Leaves", "1. Tea | 2. Use | Glossary"
    )
    assert by_bin([sample, sample], Source.quarter) == {
        -1: (0, 2, 0),
        0: (2, 2, 2),
        1: (2, 0, 0),
        2: (0, 2, 0),
        3: (2, 2, 2),
    }


def test_lengths_are_in_pieces_where_there_are_any() -> None:
    pieces = ["\u2581a", "\u2581b", "b", "b", "\u2581c"]
    assert [Source("a bbb c", pieces).length(word) for word in range(3)] == [0, 1, 4]
    assert [Source("a bbb c").length(word) for word in range(3)] == [0, 1, 2]
    assert Source("a bbb c", pieces[:2]).length(2) == 1


def test_fairseq_knows_the_scorer() -> None:
    assert REGISTRIES["scoring"]["registry"]["headings"] is HeadingsScorer
    scorer = HeadingsScorer(Namespace())
    assert scorer.score() == 0.0
    scorer.add_string("1. One | 2. Two", "1. One | 2. Three")
    scorer.add_string("1. One | 2. Two", "")
    assert scorer.score() == pytest.approx(200 / 6)
    assert "precision 50.00, recall 25.00, F1 33.33 (4 in 2 samples)" in scorer.result_string()
