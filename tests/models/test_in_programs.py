"""What programs do with a model beside fairseq's commands."""

import copy
import io
import pickle
from types import SimpleNamespace
from typing import Any, Dict

import pytest
import torch
from fairseq.dataclass.initialize import add_defaults
from fairseq.models import BaseFairseqModel, build_model
from omegaconf import OmegaConf
from torch import Tensor
from toy import CONFIGURATIONS, EXACT, STOCK, build, random_tokens, toy_task

from fairseq_updown.ops.packed_linear import FORMATS

State = Dict[str, Dict[str, Any]]


def tokens(rows: int = 3, length: int = 14) -> Tensor:
    return random_tokens(torch.Generator().manual_seed(rows + length), rows, length)


def at_once(model: Any, source: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities `(rows, tgt_len, vocabulary)`."""
    return model.get_normalized_probs(model(source, None, target), log_probs=True)


def steps(model: Any, encoder_out: Any, target: Tensor, state: State, first: int = 0) -> Tensor:
    """Those from the target's token `first` on, one after the other."""
    found = [
        model.decoder(target[:, : t + 1], encoder_out, incremental_state=state)
        for t in range(first, target.size(1))
    ]
    return torch.cat([model.get_normalized_probs(out, log_probs=True) for out in found], dim=1)


def from_yaml(task: Dict[str, Any], **model: Any) -> Any:
    cfg = OmegaConf.create({"model": model, "task": {"_name": "summarization", **task}})
    add_defaults(cfg)
    toy = vars(toy_task())
    return build_model(cfg.model, SimpleNamespace(**{**toy, "cfg": cfg.task}))


def test_a_model_from_a_configuration_can_be_pickled() -> None:
    model = from_yaml({}, _name="updown_transformer", **STOCK, updown_copy=True).eval()
    stored = io.BytesIO()
    torch.save(model, stored)
    for other in (
        pickle.loads(pickle.dumps(model)),
        torch.load(io.BytesIO(stored.getvalue()), weights_only=False),
    ):
        assert at_once(other, tokens(), tokens()).equal(at_once(model, tokens(), tokens()))


class Outer(BaseFairseqModel):
    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner


@pytest.mark.parametrize("name", ["default", "copy", "learned positions"])
def test_a_model_within_another_loads_what_that_stored(name: str) -> None:
    options = CONFIGURATIONS[name]
    one, other = Outer(build(seed=1, **options)), Outer(build(seed=2, **options))
    stored = one.state_dict()
    names = set(stored)
    other.load_state_dict(stored)
    assert set(stored) == names
    for key, value in other.state_dict().items():
        assert value.equal(one.state_dict()[key])


def test_yaml_may_say_to_the_task_alone_how_long_sources_are() -> None:
    small = dict(encoder_embed_dim=16, encoder_ffn_embed_dim=16, encoder_attention_heads=2)
    longer = {"max_source_positions": 20_000}
    arch = "updown_transformer_arxiv"
    assert from_yaml(longer, _name=arch, **small).max_positions() == (20_000, 1024)
    assert from_yaml({}, _name=arch, **small).max_positions() == (8192, 1024)
    both = from_yaml(longer, _name=arch, max_source_positions=9_000, **small)
    assert both.max_positions() == (9_000, 1024)


def test_options_are_taken_by_position_as_in_fairseq() -> None:
    model = build()
    features, extra = model.decoder(tokens(), model.encoder(tokens()), None, True, False, 1)
    assert features.shape == (3, 14, 16)
    assert extra["attn"][0] is not None


def test_steps_go_on_where_positions_are_sinusoidal() -> None:
    """fairseq's --match-source-len asks for as many tokens as the source has."""
    model, target = build(max_target_positions=6), tokens()
    found = steps(model, model.encoder(tokens()), target, {})
    longer = build(max_target_positions=20)
    longer.load_state_dict(model.state_dict())
    torch.testing.assert_close(found, at_once(longer, tokens(), target), **EXACT)
    learned = build(max_target_positions=6, decoder_learned_pos=True)
    with pytest.raises(ValueError, match="7 tokens exceeds --max-target-positions 6"):
        steps(learned, learned.encoder(tokens()), target, {})


@pytest.mark.parametrize("name", ["default", "copy"])
def test_gradients_flow_through_steps(name: str) -> None:
    model, source, target = build(**CONFIGURATIONS[name]), tokens(2, 17), tokens(2, 21)
    weight = torch.randn(2, 21, 1, dtype=torch.float64)
    gradients = []
    for out in (
        at_once(model, source, target),
        steps(model, model.encoder(source), target, {}),
    ):
        model.zero_grad()
        (out[:, :, 5:9] * weight).sum().backward()
        parameters = dict(model.named_parameters())
        unused = {name: torch.zeros_like(p) for name, p in parameters.items() if p.grad is None}
        assert len(unused) < 10
        gradients.append({name: p.grad for name, p in parameters.items()} | unused)
    torch.testing.assert_close(*gradients, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("name", ["default", "copy"])
def test_a_copied_state_goes_on_apart(name: str) -> None:
    """Two texts from one beginning, each over the end of a decoder block."""
    model, source, begin = build(**CONFIGURATIONS[name]), tokens(2, 17), tokens(2, 7)
    encoder_out = model.encoder(source)
    state: State = {}
    steps(model, encoder_out, begin, state)
    for length in (10, 11):
        target = torch.cat([begin, tokens(2, length)], dim=1)
        found = steps(model, encoder_out, target, copy.deepcopy(state), first=7)
        torch.testing.assert_close(found, at_once(model, source, target)[:, 7:], **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("precision", list(FORMATS))
def test_a_copied_state_packs_its_own_weights(precision: str) -> None:
    model = build(updown_step_precision=precision).float()
    source, target = tokens(2, 17), tokens(2, 24)
    encoder_out, state = model.encoder(source), {}
    steps(model, encoder_out, target[:, :12], state)
    copies = [copy.deepcopy(state), pickle.loads(pickle.dumps(state))]
    expected = steps(model, encoder_out, target, state, first=12)
    for copied in copies:
        found = steps(model, encoder_out, target, copied, first=12)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_padding_may_pass_the_longest_target(learned: bool) -> None:
    """fairseq's --required-seq-len-multiple pads."""
    options = dict(max_target_positions=14, decoder_learned_pos=learned)
    model, source, target = build(**options), tokens(), tokens()
    padded = torch.nn.functional.pad(target, (0, 2), value=1)
    found = at_once(model, source, padded)[:, :14]
    torch.testing.assert_close(found, at_once(model, source, target), **EXACT)
    if learned:  # in fairseq's steps pads have positions, too
        with pytest.raises(ValueError, match="15 tokens exceeds --max-target-positions 14"):
            steps(model, model.encoder(source), padded, {})
    padded[1, 14] = 5
    with pytest.raises(ValueError, match="15 tokens exceeds --max-target-positions 14"):
        at_once(model, source, padded)
