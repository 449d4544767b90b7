"""Something is learned, and what compression is for is what it does."""

from typing import Iterator

import pytest
import recall

pytestmark = pytest.mark.slow

ENOUGH = 0.95


def curve(variant: str, updates: int) -> Iterator[float]:
    """The accuracy after every fifty updates."""
    learning = recall.learn(recall.VARIANTS[variant], updates, report=50)
    return (found[recall.LENGTH] for _, found in learning)


@pytest.mark.parametrize(("variant", "updates"), [("slots", 900), ("slots and pool", 1200)])
def test_a_compressed_model_learns_to_recall_across_blocks(variant: str, updates: int) -> None:
    assert any(accuracy > ENOUGH for accuracy in curve(variant, updates))


def test_a_blockwise_model_cannot_finish_as_fast() -> None:
    assert max(curve("blockwise", 1000)) < 0.8
