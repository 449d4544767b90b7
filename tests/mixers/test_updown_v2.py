"""`--updown-mixer updown_v2`."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import (
    DIM,
    HEADS,
    LargestTensor,
    assert_counts_are_repetitions,
    assert_equals_oracle,
    assert_linear,
    batches,
    cost,
    draw,
    draw_stage,
    make,
    make_stage,
)
from toy import EXACT, few

from fairseq_updown.mixers import chosen_keys
from fairseq_updown.mixers.full import FullAttention
from fairseq_updown.mixers.updown_v2 import CachedTopkAttention


def cached_topk(mixer, x, counts, scores, state):
    """The state: of each head and query the weights of its keys, for one of the tokens that a key
    stands for; and the values."""
    n = range(len(x))
    mass = [reference.key_bias(mixer, c, s).exp() for c, s in zip(counts, scores)]
    query, key, value = (
        reference.heads(mixer, proj, x) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    weight_gate, value_gate = reference.heads(mixer, mixer.gates, x).sigmoid().unbind(dim=-1)
    if state is not None:
        cached, values = state
        g = value_gate.unsqueeze(dim=-1)
        value = g * value + (1 - g) * values
    weights, outs = {}, []
    for i in n:
        out = []
        for h in range(HEADS):
            e = [mass[j][h] * (query[i, h] @ key[j, h] * mixer.scaling).exp() for j in n]
            if state is None:
                out.append(sum(e[j] * value[j, h] for j in n) / sum(e))
                chosen = sorted(n, key=lambda j: (-e[j].item(), j))[: mixer.settings.size]
                total = sum(e[j] for j in chosen)
                weights[h, i] = {j: e[j] / total / mass[j][h] for j in chosen}
                continue
            before, g = cached[h, i], weight_gate[i, h]
            a = {j: e[j] * before[j] ** mixer.beta[h] for j in before}
            a = {j: a[j] / sum(a.values()) for j in a}
            out.append(sum(a[j] * value[j, h] for j in a))
            weights[h, i] = {j: g * a[j] / mass[j][h] + (1 - g) * before[j] for j in a}
        outs.append(torch.cat(out))
    return mixer.out_proj(torch.stack(outs)), (weights, value)


@few(20)
@given(
    size=st.sampled_from([1, 2, 3, 8]),
    chunk=st.sampled_from([1, 60, 2**24]),
    batch=batches(longest=9),
)
def test_updown_v2_equals_the_slow_oracle(size, chunk, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chosen_keys, "_LOGITS_PER_CHUNK", chunk)
        assert_equals_oracle(make_stage(CachedTopkAttention, size=size), cached_topk, batch)


def test_all_keys_no_prior_and_open_gates_are_full_attention():
    inputs, mask, mass = draw_stage(3, [9, 4], pooled=True)
    state = ()
    for mixer, x in zip(make_stage(CachedTopkAttention, size=9), inputs):
        full = make(FullAttention)
        full.load_state_dict(mixer.state_dict(), strict=False)
        torch.nn.init.zeros_(mixer.beta)
        torch.nn.init.zeros_(mixer.gates.weight)
        torch.nn.init.constant_(mixer.gates.bias, 1e3)
        out, state = mixer(x, mask, mass, state)
        torch.testing.assert_close(out[~mask], full(x, mask, mass, ())[0][~mask], **EXACT)


def test_the_cache_keeps_its_keys_and_its_weights_remain_a_distribution():
    inputs, mask, mass = draw_stage(3, [9, 4], pooled=True)
    state, indices = (), None
    for mixer, x in zip(make_stage(CachedTopkAttention), inputs):
        torch.nn.init.zeros_(mixer.count_bias.score_slope)
        _, state = mixer(x, mask, mass, state)
        indices = state[0] if indices is None else indices
        assert torch.equal(state[0], indices)
        places = indices % 9
        assert not mask[1][places[1, :, :4]].any()
        weights = state[1].exp() * mass.counts[0][places[0]]
        torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 9).double(), **EXACT)


def test_a_token_of_updown_v2_with_a_count_is_so_many_tokens():
    assert_counts_are_repetitions(make_stage(CachedTopkAttention, size=99))


def test_a_later_layer_of_updown_v2_is_linear_in_length():
    mixer = make(CachedTopkAttention, size=2)
    assert_linear(mixer, later=True)
    assert cost(mixer, 128, later=True)[1] == 128 * DIM


def test_the_first_layer_holds_the_logits_of_a_chunk_of_queries_at_most(monkeypatch):
    monkeypatch.setattr(chosen_keys, "_LOGITS_PER_CHUNK", HEADS * 8 * 128)
    mixer, x = make(CachedTopkAttention, size=2), draw([128])[0].requires_grad_()
    with LargestTensor() as largest:
        mixer(x, None, None, ())[0].sum().backward()
    assert largest.numel == HEADS * 8 * 128
