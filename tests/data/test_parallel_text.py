"""Copies between the parts of a corpus."""

import random
from typing import Set, Tuple

from fairseq_updown.data.parallel_text import near_copies


def test_near_copies_are_those_of_the_plain_definition() -> None:
    rng = random.Random(3)

    def text() -> Tuple[str, str]:
        return " ".join(rng.choices("aab", k=rng.randint(3, 30))), rng.choice("AB")

    pairs, held_out = [text() for _ in range(80)], [text() for _ in range(20)]

    def runs(source: str) -> Set[Tuple[str, ...]]:
        parts = source.split()
        return {tuple(parts[i : i + 5]) for i in range(max(1, len(parts) - 4))}

    def copies(source: str, target: str) -> bool:
        for other, other_target in held_out:
            a, b = runs(source), runs(other)
            if len(a & b) / len(a | b) >= (0.25 if target == other_target else 0.5):
                return True
        return False

    expected = [copies(*pair) for pair in pairs]
    assert 5 < sum(expected) < 75
    assert near_copies(pairs, held_out, "label") == expected
