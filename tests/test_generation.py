"""Search options do what they say."""

import math
from argparse import Namespace
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import build, random_tokens, toy_task
from hypothesis import given
from hypothesis import strategies as st

from fairseq_updown.generation import RepeatBlocker
from fairseq_updown.tasks.summarization import SummarizationConfig, SummarizationTask


@given(
    rows=st.lists(st.lists(st.integers(4, 6), min_size=7, max_size=7), min_size=1, max_size=3),
    size=st.integers(1, 4),
    step=st.integers(0, 7),
)
def test_exactly_the_repeats_are_forbidden(rows: list, size: int, step: int) -> None:
    tokens = torch.full((len(rows), 12), 1)
    tokens[:, 0] = 2
    tokens[:, 1 : step + 1] = torch.tensor(rows)[:, :step]
    found = RepeatBlocker(size)(tokens, torch.zeros(len(rows), 9), 1, len(rows), step)
    for row, scores in zip(rows, found):
        said = row[:step]
        runs = [said[i : i + size] for i in range(len(said) - size + 1)]
        expected = {t for t in range(9) if said[len(said) - size + 1 :] + [t] in runs}
        assert {t for t in range(9) if scores[t] == -math.inf} == expected


def generator(model: Any, **options: Any) -> Any:
    dictionary = toy_task().source_dictionary
    task = SummarizationTask(SummarizationConfig(), dictionary, dictionary)
    return task.build_generator([model], Namespace(**options))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_generated_text_repeats_no_run_of_tokens(size: int) -> None:
    model = build(seed=4, max_target_positions=64)
    sample = {"net_input": {"src_tokens": random_tokens(torch.Generator().manual_seed(1), 3, 17)}}
    sample["net_input"]["src_lengths"] = torch.tensor([17, 17, 17])
    length = 15 if size == 1 else 40
    options = dict(beam=3, min_len=length, max_len_b=length)
    for hypotheses in generator(model, no_repeat_ngram_size=size, **options).generate(
        [model], sample
    ):
        said = hypotheses[0]["tokens"].tolist()
        runs = [tuple(said[i : i + size]) for i in range(len(said) - size)]
        assert len(runs) >= length - size
        assert len(set(runs)) == len(runs)
    free = generator(model, **options).generate([model], sample)[0][0]["tokens"].tolist()
    assert len(set(pairwise(free))) < len(free) - 1  # without the option it does repeat
