"""Where to divide a document that is longer than a checkpoint takes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

SPACE = "\u2581"  # sentencepiece's mark for the space before a word

_SENTENCE_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*$")
_FULL_WIDTH_SENTENCE_END = re.compile(r"[\u3002\uff01\uff1f][\u300d\u300f\u201d\uff09]*$")


def starts_sentence(pieces: Sequence[str], index: int) -> bool:
    """Whether a sentence seems to end right before piece `index`."""
    before = "".join(pieces[max(0, index - 3) : index])
    if _FULL_WIDTH_SENTENCE_END.search(before):
        return True
    if not (pieces[index].startswith(SPACE) and _SENTENCE_END.search(before)):
        return False
    following = "".join(pieces[index : index + 2])[1:2]
    return not following.islower()


def window_ends(pieces: Sequence[str], limit: int) -> list[int]:
    """Where to divide a document into windows of at most `limit` pieces, of similar length.

    A window ends after a sentence, else after a word, if one ends in the second half of what it may
    hold; else in mid-word.

    Returns:
        the ends, the last of them `len(pieces)`
    """
    ends = []
    start = 0
    while len(pieces) - start > limit:
        remaining = len(pieces) - start
        even = start + math.ceil(remaining / math.ceil(remaining / limit))
        candidates = sorted(
            range(start + limit // 2 + 1, start + limit + 1), key=lambda end: abs(end - even)
        )
        after_sentence = (end for end in candidates if starts_sentence(pieces, end))
        after_word = (end for end in candidates if pieces[end].startswith(SPACE))
        start = next(after_sentence, None) or next(after_word, even)
        ends.append(start)
    return [*ends, len(pieces)]
