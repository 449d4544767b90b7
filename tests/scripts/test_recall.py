"""The recall tasks are what they say."""

import json
from typing import Any, Dict, List

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


@pytest.mark.parametrize("flags", [[], ["--autocast"]])
def test_curves_are_printed_in_either_precision(
    flags: List[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: List[str] = []

    def build(options: Dict[str, Any], *more: Any) -> Any:
        built.append(options.get("updown_autocast", "off"))
        return plain_build(options, *more)

    plain_build = recall.build
    monkeypatch.setattr(recall, "build", build)
    for module, name in ((recall.logging, "disable"), (torch, "set_num_threads")):
        monkeypatch.setattr(module, name, lambda _: None)  # they would last
    sizes = ["--variants", "slots", "--updates", "3", "--report", "2"]
    assert recall.main([*sizes, *flags]) == 0
    assert built == ["bfloat16-always" if flags else "off"]
    name, _, curve = capsys.readouterr().out.splitlines()[-1].partition(": ")
    assert name == "slots"
    assert list(json.loads(curve)) == ["2", "3"]
