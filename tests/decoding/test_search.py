"""Search options do what they say."""

import math
from argparse import Namespace
from itertools import pairwise
from typing import Any

import pytest
import torch
from fairseq.token_generation_constraints import pack_constraints
from hypothesis import given
from hypothesis import strategies as st
from toy import build, random_tokens, toy_task

from fairseq_updown.decoding.search import RepeatBlocker
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


def test_a_forced_prefix_may_repeat() -> None:
    """Only the prefix's next token is left, and it would repeat a pair: it stays. In another row
    others are left."""
    tokens = torch.tensor([[2, 4, 5, 4, 1, 1], [2, 4, 5, 4, 1, 1]])
    lprobs = torch.full((2, 9), -math.inf)
    lprobs[:, 5] = -0.5
    lprobs[1, 6] = -2.0
    expected = lprobs.clone()
    expected[1, 5] = -math.inf
    assert RepeatBlocker(2)(tokens, lprobs, 2, 1, 3).equal(expected)


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


def test_diverse_beams_do_not_depend_on_the_numbers_of_the_sentences() -> None:
    model = build(seed=11)
    model.decoder.output_projection.weight.data.mul_(3)  # surer: a sentence finishes early
    source = random_tokens(torch.Generator().manual_seed(2), 4, 19)
    source[1, :7], source[2, :16] = 1, 1
    options = dict(beam=4, diverse_beam_groups=2, diverse_beam_strength=2.0, max_len_b=22)
    search = generator(model, **options)

    def said(sample: Any) -> Any:
        found = search.generate([model], sample)
        return [[beam["tokens"].tolist() for beam in hypotheses] for hypotheses in found]

    alone = [said({"net_input": {"src_tokens": row[row.ne(1)].unsqueeze(0)}})[0] for row in source]
    assert sum(max(map(len, beams)) < 20 for beams in alone) == 1
    for numbers in ([40, 7, 5, 0], [1, 3, 2, 0]):
        sample = {"id": torch.tensor(numbers), "net_input": {"src_tokens": source}}
        assert said(sample) == alone


SEARCHES = {
    "beam": dict(beam=4),
    "greedy": dict(beam=1),
    "length penalty": dict(beam=3, lenpen=2.5, min_len=6),
    "short beam": dict(beam=3, lenpen=0.2, max_len_a=0.3, max_len_b=5),
    "no repeats": dict(beam=3, no_repeat_ngram_size=2, min_len=12),
    "sampling": dict(beam=3, sampling=True, sampling_topk=6, temperature=1.3),
    "nucleus": dict(beam=2, sampling=True, sampling_topp=0.7),
    "diverse beam": dict(beam=4, diverse_beam_groups=2, diverse_beam_strength=0.7),
    "diverse siblings": dict(beam=3, diversity_rate=0.4),
    "constraints": dict(beam=4, constraints="unordered"),
    "ordered constraints": dict(beam=4, constraints="ordered"),
    "prefix": dict(beam=3, prefix_size=3),
}


@pytest.mark.parametrize("name", list(SEARCHES))
def test_cached_search_finds_what_recomputing_every_step_finds(name: str) -> None:
    options = {"max_len_b": 22, **SEARCHES[name]}
    prefix_size = options.pop("prefix_size", 0)
    model = build(seed=5)
    random = torch.Generator().manual_seed(2)
    source = random_tokens(random, 3, 19)
    source[1, :7], source[2, :16] = 1, 1  # shorter sentences finish early
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(1).sum(dim=1)}}
    more = {}
    if "constraints" in options:
        words = [[torch.tensor([7, 9]), torch.tensor([12])], [], [torch.tensor([5, 5, 6])]]
        more["constraints"] = pack_constraints(words)
    if prefix_size:
        more["prefix_tokens"] = random_tokens(random, 3, prefix_size)
    found = []
    for cached in (True, False):
        search = generator(model, **options)
        search.model.has_incremental = cached
        torch.manual_seed(3)
        found.append(search.generate([model], sample, **more))
    steps = max(len(beam["tokens"]) for hypotheses in found[0] for beam in hypotheses)
    assert steps > 5  # past a completed decoder block
    for ours, expected in zip(*found):
        assert len(ours) == len(expected)
        for a, b in zip(ours, expected):
            assert a["tokens"].tolist() == b["tokens"].tolist()
            torch.testing.assert_close(a["score"], b["score"], rtol=0, atol=1e-6)
