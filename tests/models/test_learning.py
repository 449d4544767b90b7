"""Something is learned, and what compression is for is what it does."""

import pytest
import recall

pytestmark = pytest.mark.slow

UPDATES = 1200


@pytest.mark.parametrize("variant", ["slots", "slots and pool"])
def test_a_compressed_model_learns_to_recall_across_blocks(variant: str) -> None:
    assert recall.train(variant, UPDATES, report=UPDATES)[UPDATES] > 0.95


def test_a_blockwise_model_cannot_finish_as_fast() -> None:
    assert recall.train("blockwise", UPDATES, report=UPDATES)[UPDATES] < 0.8
