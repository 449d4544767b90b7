"""Something is learned, and what compression is for is what it does."""

from typing import Iterator

import pytest
import recall

pytestmark = pytest.mark.slow

ENOUGH, UPDATES = 0.95, 500


def curve(variant: str) -> Iterator[float]:
    """The accuracy after every fifty updates; a question never stands in its answer's block."""
    task = recall.scattered_tasks([recall.LENGTH])[0]._replace(test_bsz=recall.TEST)
    options = {**recall.VARIANTS[variant], "encoder_layers": 2}
    for _, found in recall.learn(options, UPDATES, report=50, tasks=[task]):
        yield found[recall.LENGTH]


@pytest.mark.parametrize("variant", ["slots", "slots and pool"])
def test_a_compressed_model_learns_to_recall_across_blocks(variant: str) -> None:
    assert any(accuracy > ENOUGH for accuracy in curve(variant))


def test_a_blockwise_model_cannot_finish_as_fast() -> None:
    """It has not begun: three of eight is to guess among the values there."""
    assert max(curve("blockwise")) < 0.5
