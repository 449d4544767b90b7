"""Something is learned, and what compression is for is what it does."""

import pytest
import recall

pytestmark = pytest.mark.slow

UPDATES = {"slots": 900, "slots and pool": 1200, "blockwise": 1200}


def accuracy(variant: str) -> float:
    updates = UPDATES[variant]
    return recall.train(variant, updates, report=updates)[updates]


@pytest.mark.parametrize("variant", ["slots", "slots and pool"])
def test_a_compressed_model_learns_to_recall_across_blocks(variant: str) -> None:
    assert accuracy(variant) > 0.95


def test_a_blockwise_model_cannot_finish_as_fast() -> None:
    assert accuracy("blockwise") < 0.8
