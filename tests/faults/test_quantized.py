"""`torch.ao.quantization.quantize_dynamic`, then generating with fairseq's search."""

from pathlib import Path
from typing import Any, List

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from fairseq.sequence_generator import SequenceGenerator
from stored import SMALL, make_dictionaries, parse, save_checkpoint
from toy import draw_rows, pad_rows

from fairseq_updown.mixers import MIXERS

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(
        not torch.backends.quantized.supported_engines, reason="no quantized kernels here"
    ),
]
FLAGS = [*SMALL, "--updown-block-size", "6", "--updown-slots", "2", "--updown-memory-size", "4"]
FLAGS += ["--updown-pool-layers", "1,2", "--updown-pool-rate", "2", "--max-target-positions", "40"]
FLAGS += ["--updown-decoder-block-size", "4", "--updown-decoder-slots", "2"]


def load(tmp_path: Path, *flags: str) -> Any:
    data = make_dictionaries(tmp_path / "bin")
    args = parse(data, "updown_transformer_tiny", *FLAGS, *flags)
    path = save_checkpoint(tmp_path / "a.pt", args)
    (model,), _, task = load_model_ensemble_and_task([str(path)])
    return model.eval(), task


def quantize(model: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def as_sample(source: torch.Tensor) -> Any:
    return {"net_input": {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}}


def searcher(model: Any, task: Any, beam: int) -> SequenceGenerator:
    lengths = dict(min_len=14, max_len_b=18)
    return SequenceGenerator([model], task.target_dictionary, beam_size=beam, **lengths)


def generate(model: Any, task: Any, beam: int = 3) -> List[Any]:
    search = searcher(model, task, beam)
    source = pad_rows(draw_rows([23, 11, 17], seed=1), left=True)
    with torch.no_grad():
        found = search.generate([model], as_sample(source))
    return [[(h["tokens"].tolist(), float(h["score"])) for h in row] for row in found]


def assert_near(quantized: Any, model: Any, source: torch.Tensor, prev: torch.Tensor) -> None:
    """Far nearer than two models are that differ in more than rounding: these are 1 or more off."""
    with torch.no_grad():
        ours, expected = (m(source, None, prev)[0].log_softmax(-1) for m in (quantized, model))
    assert (ours - expected).norm() < 0.35 * (expected - expected.mean(-1, keepdim=True)).norm()


@pytest.mark.parametrize(
    "flags", [[], ["--updown-cross-slots", "3"], ["--updown-pooling", "topk"], ["--updown-copy"]]
)
def test_generating_is_the_same_twice_and_near_to_float(flags: List[str], tmp_path: Path) -> None:
    model, task = load(tmp_path, *flags)
    quantized = quantize(model)
    assert callable(quantized.encoder.layers[0].self_attn.q_proj.weight)
    first = generate(quantized, task)
    assert generate(quantized, task) == first
    for source, found in zip(draw_rows([23, 11, 17], seed=1), first):
        for tokens, _ in found:
            assert_near(quantized, model, source[None], torch.tensor([[2, *tokens[:-1]]]))


def test_what_was_generated_scores_as_in_one_pass(tmp_path: Path) -> None:
    model, task = load(tmp_path)
    quantized = quantize(model)
    source = draw_rows([23], seed=1)[0][None]
    search = searcher(quantized, task, beam=2)
    sample = as_sample(source)
    for found in search.generate([quantized], sample)[0]:
        tokens = found["tokens"]
        prev = torch.cat([torch.tensor([2]), tokens[:-1]])[None]
        with torch.no_grad():
            scores = quantized(source, None, prev)[0].log_softmax(-1)[0]
        total = scores.gather(1, tokens[:, None]).mean()
        assert abs(float(total - found["score"])) < 0.02 * abs(float(total))


@pytest.mark.parametrize("mixer", list(MIXERS))
def test_every_mixer_is_near_to_float(mixer: str, tmp_path: Path) -> None:
    model, _ = load(tmp_path, "--updown-mixer", mixer)
    source, prev = (torch.stack(draw_rows([length], seed=1)) for length in (23, 9))
    assert_near(quantize(model), model, source, prev)
