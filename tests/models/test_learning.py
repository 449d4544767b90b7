"""Something is learned, and what compression is for is what it does."""

from typing import Iterator

import pytest
import recall

pytestmark = pytest.mark.slow

ENOUGH = 0.95


def curve(variant: str, updates: int, bsz: int = recall.BATCH) -> Iterator[float]:
    """The accuracy after every fifty updates."""
    task = recall.PLAIN._replace(bsz=bsz)
    learning = recall.learn(recall.VARIANTS[variant], updates, report=50, tasks=[task])
    return (found[recall.LENGTH] for _, found in learning)


@pytest.mark.parametrize(
    ("variant", "updates", "bsz"), [("slots", 900, 32), ("slots and pool", 700, 64)]
)
def test_a_compressed_model_learns_to_recall_across_blocks(
    variant: str, updates: int, bsz: int
) -> None:
    assert any(accuracy > ENOUGH for accuracy in curve(variant, updates, bsz))


def test_a_blockwise_model_cannot_finish_as_fast() -> None:
    """In the updates in which slots, with the same batches, have nearly always finished."""
    assert max(curve("blockwise", 700)) < 0.65
