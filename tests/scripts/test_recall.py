"""The recall tasks are what they say."""

import pytest
import recall
import torch


@pytest.mark.parametrize("length", [16, 64])
def test_scattered_pairs_stand_in_the_first_half_and_questions_at_the_end(length: int) -> None:
    generator = torch.Generator().manual_seed(3)
    source, target = recall.scattered_examples(generator, 20, length)
    assert source.shape == (20, length)
    assert (source[:, length // 2 :] < recall.END).all()
    for tokens, answers in zip(source.tolist(), target.tolist()):
        pairs = [divmod(t - recall.END, recall.NUM_VALUES) for t in tokens if t >= recall.END]
        assert sorted(key for key, _ in pairs) == list(range(recall.PARTS))
        asked = [tokens[-2] - recall.ASK_A, tokens[-1] - recall.ASK_B]
        assert [dict(pairs)[key] + recall.VALUE for key in asked] == answers


def test_longer_sources_come_in_smaller_batches() -> None:
    assert [task.bsz for task in recall.scattered_tasks([64, 256, 1024])] == [32, 16, 8]
