"""`--updown-mixer flow`."""

import reference
import torch
from hypothesis import given
from mixer_checks import (
    assert_counts_are_repetitions,
    assert_equals_oracle,
    assert_linear,
    batches,
    draw,
    make,
)
from toy import EXACT

from fairseq_updown.mixers.flow import FlowAttention


def flow(mixer, x, counts, scores, state):
    """The paper's equations one pair of tokens at a time; each tensor holds one number a head."""
    query, key, value = (
        reference.heads(mixer, proj, x) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    n = range(len(x))
    count = [reference.key_bias(mixer, c, s).exp() for c, s in zip(counts, scores)]
    capacity = [[(query[i].sigmoid() * key[j].sigmoid()).sum(-1) for j in n] for i in n]
    inflow = [sum(count[j] * capacity[i][j] for j in n) for i in n]
    outflow = [sum(count[i] * capacity[i][j] for i in n) for j in n]
    conserved_in = [sum(count[j] * capacity[i][j] / outflow[j] for j in n) for i in n]
    conserved_out = [sum(count[i] * capacity[i][j] / inflow[i] for i in n) for j in n]
    every = sum(count[j] * conserved_out[j].exp() for j in n)
    competing = [sum(count) * conserved_out[j].exp() / every for j in n]
    outs = []
    for i in n:
        weights = [count[j] * capacity[i][j] / inflow[i] * competing[j] for j in n]
        aggregated = sum(weights[j].unsqueeze(-1) * value[j] for j in n)
        outs.append((conserved_in[i].sigmoid().unsqueeze(-1) * aggregated).flatten())
    return mixer.out_proj(torch.stack(outs)), None


@given(batch=batches())
def test_flow_equals_the_slow_oracle(batch):
    assert_equals_oracle([make(FlowAttention)], flow, batch)


def test_a_token_of_flow_with_a_count_is_so_many_tokens():
    assert_counts_are_repetitions([make(FlowAttention)])


def test_flow_is_linear_in_length():
    assert_linear(make(FlowAttention))


def test_flow_is_conserved():
    """Where no source stands out, a sink takes as much as there is: the mean, times its gate."""
    mixer = make(FlowAttention)
    torch.nn.init.zeros_(mixer.k_proj.weight)
    x, _, _ = draw([7])
    mean = reference.heads(mixer, mixer.v_proj, x).mean(dim=1)
    query = reference.heads(mixer, mixer.q_proj, x).sigmoid()
    key = reference.heads(mixer, mixer.k_proj, x).sigmoid()
    capacity = (query * key).sum(dim=-1, keepdim=True)
    gate = (capacity / capacity.mean(dim=1, keepdim=True)).sigmoid()
    expected = mixer.out_proj((gate * mean.unsqueeze(1)).flatten(2))
    torch.testing.assert_close(mixer(x, None, None, ())[0], expected, **EXACT)


def test_flow_of_saturated_features_is_finite():
    """Where no query opens, nothing flows at all."""
    mixer = make(FlowAttention).float()
    torch.nn.init.constant_(mixer.q_proj.bias, -200.0)
    x, _, _ = draw([7])
    out, _ = mixer(x.float().requires_grad_(), None, None, ())
    gradients = torch.autograd.grad(out.sum(), list(mixer.parameters()))
    assert all(t.isfinite().all() for t in (out, *gradients))
