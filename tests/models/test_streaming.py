"""Sources without end, encoded segment after segment."""

from typing import Any, Dict, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import pool
from torch import Tensor
from toy import CONFIGURATIONS, EXACT, PAD, build, few, pad_rows, predicted, random_tokens

from fairseq_updown.attention.pooling import POOLINGS
from fairseq_updown.mass import TokenMass
from fairseq_updown.models.updown_transformer.segments import Streaming
from fairseq_updown.pyramid import pool_by_scores

SEGMENT = 12


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def stream(model: Any, segment_size: int = SEGMENT, memory_size: int = 1000) -> Any:
    model.encoder.streaming = Streaming(segment_size, memory_size)
    return model


def source(length: int, seed: int = 0) -> Tensor:
    return random_tokens(torch.Generator().manual_seed(seed), 1, length)


@pytest.mark.parametrize("length", [19, 20])
def test_with_a_slot_for_each_token_it_is_attention_to_all_segments_so_far(length: int) -> None:
    weights = build("stock", seed=3).state_dict()
    options = dict(updown_slots=5, updown_block_size=5, updown_pool_layers="", perturb=False)
    model, stock = stream(build(**options)), build("stock")
    model.load_state_dict(dict(weights))
    stock.load_state_dict(weights)
    tokens = source(length)
    halves = tokens.split(10, dim=1)
    x = torch.cat([stock.encoder.forward_embedding(half)[0] for half in halves], dim=1)
    segment = torch.arange(length) // 10
    unseen = segment.unsqueeze(0) > segment.unsqueeze(1)  # a later segment
    x = x.transpose(0, 1)
    for layer in stock.encoder.layers:
        x = layer(x, None, attn_mask=unseen)
    torch.testing.assert_close(model.encoder(tokens)["encoder_out"][0], x, **EXACT)


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_what_fits_a_segment_is_encoded_as_ever(name: str) -> None:
    model, tokens = build(**CONFIGURATIONS[name]), source(SEGMENT)
    expected = model.encoder(tokens)
    actual = stream(model).encoder(tokens)
    for key, tensors in expected.items():
        assert len(actual[key]) == len(tensors)
        assert all(map(torch.equal, actual[key], tensors))


@pytest.mark.parametrize("name", ["default", "copy"])
def test_pads_beside_a_stream_change_nothing(name: str) -> None:
    model, tokens, target = stream(build(**CONFIGURATIONS[name])), source(20), source(5, 1)
    padded = torch.cat([torch.full((1, 3), PAD), tokens], dim=1)
    expected, (out, extra) = model(tokens, None, target), model(padded, None, target)
    torch.testing.assert_close(out, expected[0], **EXACT)
    torch.testing.assert_close(extra["attn"][0][:, :, 3:], expected[1]["attn"][0], **EXACT)
    assert not extra["attn"][0][:, :, :3].any()


@few(3)
@given(
    length=st.integers(SEGMENT + 1, 70),
    memory_size=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_every_token_is_in_the_memory_once(
    configuration: Dict[str, Any], length: int, memory_size: int, seed: int
) -> None:
    model = stream(build(**configuration), SEGMENT, memory_size)
    with torch.no_grad():
        out = model.encoder(source(length, seed))
    memory, (slot,), (weight,) = (out[k] for k in ("encoder_out", "source_slot", "source_weight"))
    size = memory[0].size(0)
    assert size <= max(memory_size, -(-length // SEGMENT))
    assert out["memory_counts"][0].shape == (1, size)
    found = torch.zeros(1, size).index_add(1, slot[0], torch.ones(1, length))
    torch.testing.assert_close(out["memory_counts"][0].float(), found)
    shares = torch.zeros(1, size).index_add(1, slot[0], weight.float())
    torch.testing.assert_close(shares, torch.ones(1, size))
    assert all(torch.isfinite(tensor).all() for tensor in memory)


def last_segment(model: Any, tokens: Tensor) -> Tensor:
    """The memory of the last of three segments of twelve tokens."""
    out = model.encoder(tokens)
    return out["encoder_out"][0][out["source_slot"][0][0, 24:].unique()]


@pytest.mark.parametrize("name", ["default", "no pool", "topk", "no gate", "copy", "pre-norm"])
def test_a_segment_sees_what_earlier_ones_left(name: str) -> None:
    model, tokens = stream(build(**CONFIGURATIONS[name])), source(36)
    changed = tokens.clone()
    changed[0, 3] = 4 if tokens[0, 3] != 4 else 5
    assert not torch.equal(last_segment(model, tokens), last_segment(model, changed))


@pytest.mark.parametrize("options", [CONFIGURATIONS["blockwise"], dict(updown_mixer="luna=3")])
def test_without_slots_segments_are_on_their_own(options: Any) -> None:
    model, tokens = stream(build(**options)), source(36)
    alone = model.encoder(tokens[:, 24:])["encoder_out"][0]
    torch.testing.assert_close(last_segment(model, tokens), alone, **EXACT)


def test_the_states_of_a_stream_stand_in_the_order_of_its_tokens() -> None:
    model, tokens = (
        stream(build(**{**CONFIGURATIONS["blockwise"], "updown_copy": True})),
        source(36),
    )
    whole = model.encoder(tokens)["source_states"][0]
    alone = [model.encoder(part)["source_states"][0] for part in tokens.split(12, dim=1)]
    torch.testing.assert_close(whole, torch.cat(alone, dim=1), **EXACT)


def test_later_segments_change_nothing_of_earlier_ones() -> None:
    model, tokens = stream(build()), source(36)
    first = [model.encoder(tokens[:, :end])["encoder_out"][0] for end in (24, 36)]
    torch.testing.assert_close(first[1][: len(first[0])], first[0], **EXACT)


def test_what_earlier_segments_left_stops_growing() -> None:
    model = stream(build())
    seen = []
    attention = model.encoder.layers[0].self_attn
    forward = attention.forward
    attention.forward = lambda *given: seen.append(given[4:]) or forward(*given)
    model.encoder(source(12 * 7))
    sizes = [earlier[0].slots.size(1) for earlier in seen if earlier]
    assert len(seen) == 7
    assert sizes == [6] * 6  # two slots of each of three blocks
    counts = [float(earlier[0].mass.counts.sum()) for earlier in seen if earlier]
    assert counts == [12.0 * segments for segments in range(1, 7)]


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_a_stream_is_decoded_step_by_step_as_at_once(name: str) -> None:
    model = stream(build(**CONFIGURATIONS[name]), memory_size=9)
    encoder_out = model.encoder(source(40))
    across = source(40)[:, 10:15]  # from the first segment into the second
    target = torch.cat([torch.tensor([[2]]), source(9, 1), across], dim=1)
    whole = predicted(model, model.decoder(target, encoder_out=encoder_out))
    state: Any = {}
    steps = [
        predicted(model, model.decoder(target[:, : i + 1], encoder_out, incremental_state=state))
        for i in range(target.size(1))
    ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, **EXACT)


def test_several_streams_at_once_and_trainings_are_refused() -> None:
    model = stream(build())
    with pytest.raises(ValueError, match=r"2 sources.*40 tokens.*segment of 12.*one at a time"):
        model.encoder(pad_rows([source(40)[0], source(8)[0]]))
    with torch.enable_grad(), pytest.raises(ValueError, match="only in generation"):
        model.encoder(source(40))


@pytest.mark.parametrize("name", list(POOLINGS))
@pytest.mark.parametrize("length", [4, 7, 16])
def test_pooling_by_scores_is_the_operators(length: int, name: str) -> None:
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(1, length, 3, generator=generator, dtype=torch.float64)
    scores = torch.rand(1, length, generator=generator, dtype=torch.float64)
    counts = torch.randint(1, 9, (1, length), generator=generator).double()
    pooled = pool_by_scores(x, TokenMass.of(counts, scores), 4, POOLINGS[name], 20.0)
    for number, slot in enumerate(pool(name, scores[0], 4, 20.0)):
        members = list(slot.weights)
        state = sum(weight * x[0, i] for i, weight in slot.weights.items())
        if name == "topk":
            state = x[0, slot.leader]
        torch.testing.assert_close(pooled.x[0, number], state, **EXACT)
        assert float(pooled.mass.counts[0, number]) == float(counts[0, members].sum())
        torch.testing.assert_close(pooled.mass.scores[0, number], slot.score, **EXACT)
