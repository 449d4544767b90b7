"""scripts/corpora/rfc_documents.py: RFCs of all ages taken apart."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator

import pytest
from rfc_documents import Unfit, parse

SYLLABLES = ["ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu"]


def words(rng: random.Random, count: int) -> str:
    """Made-up words, so that no two texts share a run of them by chance."""
    return " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(count))


BODY = words(random.Random(0), 230)
ABSTRACT = words(random.Random(1), 30)


def wrapped(text: str, indent: int = 3) -> str:
    """Text set as in an RFC, eight words a line."""
    parts = text.split()
    lines = (" ".join(parts[i : i + 8]) for i in range(0, len(parts), 8))
    return "\n".join(" " * indent + line for line in lines)


PAGED = f"""




Network Working Group                                           A. Author
Request for Comments: 1234                                    Some Company
Obsoletes: 1000, RFC 1001,                                  B. Other, Ed.
           1002
Updates: 900                                                  August 1995


                    A Protocol for the Exchange
                            of Teapots

Status of this Memo

   This document specifies an Internet standards track protocol.
   Distribution of this memo is unlimited.

Copyright Notice

   Copyright (C) The Internet Society (1995).  All Rights Reserved.

Abstract

{wrapped(ABSTRACT)}



Author & Other              Standards Track                     [Page 1]
\f
RFC 1234                         Teapots                     August 1995


Table of Contents

   1.  Introduction ................................................. 1
     1.1.  Words, and a heading that is too
           long for a line .......................................... 2
   2.  Kettles . . . . . . . . . . . . . . . . . . . . . . . . . . .  2
   References ....................................................... 3

1.  Introduction

{wrapped(BODY)} non-
   empty and it goes on

Author & Other              Standards Track                     [Page 2]
\f
RFC 1234                         Teapots                     August 1995

   over the page as if there were none.

      +-+-+-+-+-+-+-+-+
      |  Kind |  Size |
      +-+-+-+-+-+-+-+-+

2.  Kettles

   See [1] on page 12 of RFC 1000.

3.  References

   [1] Somebody, "A Book", 1990.

4.  Security Considerations

   Security issues are not discussed in this memo.

Author's Address

   A. Author
   Phone: 555 1234

Full Copyright Statement

   Copyright (C) The Internet Society (1995).  All Rights Reserved.

   This document may be copied.

Author & Other              Standards Track                     [Page 3]
\f
"""

# xml2rfc v3: no pages, the abstract first, and a table of contents without page numbers.
PAGELESS = f"""\ufeff



Internet Engineering Task Force (IETF)                        A. Author
Request for Comments: 9123                                 Some Company
Obsoletes: 1000, 1001,                                        June 2022
           1002
Category: Standards Track
ISSN: 2070-1721


            A Protocol for the Exchange of Teapots

Abstract

{wrapped(ABSTRACT)}

Status of This Memo

   This is an Internet Standards Track document.

Copyright Notice

   Copyright (c) 2022 IETF Trust and the persons identified as the
   document authors.  All rights reserved.

   This document is subject to BCP 78.

Table of Contents

   1.  Introduction
     1.1.  Words, and a heading that is too
           long for a line
   2.  Kettles
   3.  References
     3.1.  Normative References
   Acknowledgements
   Author's Address

1.  Introduction

{wrapped(BODY)} non-
   empty and it goes on over the page as if there were none.

      +-+-+-+-+-+-+-+-+
      |  Kind |  Size |
      +-+-+-+-+-+-+-+-+

2.  Kettles

   See [1] on page 12 of RFC 1000.

3.  References

3.1.  Normative References

   [1]  Somebody, "A Book", 1990.

Acknowledgements

   Thanks to all.

Author's Address

   A. Author
   Email: a@example.org
"""

# The 1980s: a centred heading, no indentation, contents at the margin, pages told by "Page 1" only.
FLUSH = f"""RFC: 756                                                July 1979

          A Protocol for the Exchange of Teapots

                            Abstract

{wrapped(ABSTRACT, 0)}

Contents

1. Introduction
2. Kettles
References

1. Introduction

{wrapped(BODY, 0)} non-
empty and it goes on

                                                                Page 1
\f
RFC 756                                                 July 1979

over the page as if there were none.

--------------------------------------

|  Kind |  Size |

2. Kettles

See [1] on page 12 of RFC 1000.

References

[1] Somebody, "A Book", 1990.

"""
EXPECTED = (
    f"1. Introduction {BODY} non-empty and it goes on over the page as if there were none. "
    "| Kind | Size | 2. Kettles See [1] on page 12 of RFC 1000."
)


@pytest.mark.parametrize("text", [PAGED, PAGELESS, FLUSH], ids=["paged", "pageless", "flush"])
def test_abstract_and_body_stand_without_furniture(text: str) -> None:
    rfc = parse(1, text.encode())
    assert rfc.abstract == ABSTRACT
    assert rfc.body == EXPECTED
    assert rfc.title == "A Protocol for the Exchange of Teapots"
    assert rfc.obsoletes == ([] if text == FLUSH else [1000, 1001, 1002])


def test_the_word_contents_in_the_abstract_starts_no_table() -> None:
    text = PAGELESS.replace(wrapped(ABSTRACT), f"{wrapped(ABSTRACT)}\n   content.\n   contents")
    assert parse(1, text.encode()).abstract == f"{ABSTRACT} content. contents"


def test_old_encodings_and_line_ends_are_read() -> None:
    text = PAGED.replace("Kettles", "K\u00e9ttles").replace("\n", "\r\n")
    body = EXPECTED.replace("Kettles", "K\u00e9ttles")
    assert parse(1, text.encode("latin-1")).body == parse(1, text.encode()).body == body
    overstruck = PAGED.replace("2.  Kettles\n\n", "2.  _\bK_\be_\bt_\bt_\bl_\be_\bs\n\n")
    assert parse(1, overstruck.encode()).body == EXPECTED


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Abstract", "Overview", "no abstract"),
        (ABSTRACT[-60:], "", None),
        (wrapped(ABSTRACT), "   Too short.", "abstract under 12 words"),
        (wrapped(ABSTRACT), wrapped(words(random.Random(2), 401)), "abstract over 400 words"),
        (wrapped(BODY), "   Too short.", "body under 200 words"),
        (PAGED, "", "no abstract"),
        (PAGED, "\f\f\0\b[Page 1]\f", "no abstract"),
    ],
)
def test_documents_that_make_no_pair_are_told_by_reason(
    old: str, new: str, reason: str | None
) -> None:
    assert old in PAGED or old == ABSTRACT[-60:]
    text = PAGED.replace(old, new).encode()
    if reason is None:
        assert parse(1, text)
    else:
        with pytest.raises(Unfit, match=reason):
            parse(1, text)


@pytest.fixture
def little_time() -> Iterator[None]:
    """Of the processor, which other work does not take."""

    def stop(*_: object) -> None:
        raise AssertionError("more than linear time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 10)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.usefixtures("little_time")
@pytest.mark.parametrize("unit", [" ", "1", ". ", "a", "Page ", "A.1.", "\n", "\f", "_\b", "a-\n"])
@pytest.mark.parametrize("start", ["", "Obsoletes: ", "Contents\n\n", "Abstract\n\n"])
def test_no_text_takes_more_than_linear_time(unit: str, start: str) -> None:
    with pytest.raises(Unfit):  # a quadratic expression would run for minutes
        parse(1, ("\n\n" + start + unit * (60_000 // len(unit)) + "!").encode())
