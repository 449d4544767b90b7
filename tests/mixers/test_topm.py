"""`--updown-mixer topm`."""

import weakref

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import HEADS, LargestTensor, assert_equals_oracle, batches, draw, make
from toy import EXACT, few

from fairseq_updown.mixers import chosen_keys
from fairseq_updown.mixers.full import FullAttention
from fairseq_updown.mixers.topm import TopMAttention


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen_keys, "_LOGITS_PER_CHUNK", 200)


def top_m(mixer, x, counts, scores, state):
    """Sort all logits of a query and head, hide all but the first."""
    biases = [reference.key_bias(mixer, c, s) for c, s in zip(counts, scores)]
    key, outs = reference.heads(mixer, mixer.k_proj, x), []
    for token in x:
        query = reference.heads(mixer, mixer.q_proj, token) * mixer.scaling
        hidden = torch.zeros(len(x), HEADS)
        for h in range(HEADS):
            logits = [float(query[h] @ key[j, h] + biases[j][h]) for j in range(len(x))]
            order = sorted(range(len(x)), key=lambda j: (-logits[j], j))
            hidden[order[mixer.settings.size :], h] = float("-inf")
        keys = [(t, bias + mask) for t, bias, mask in zip(x, biases, hidden)]
        outs.append(reference.softmax_attention(mixer, token, keys))
    return torch.stack(outs), None


@few(20)
@given(size=st.integers(1, 14), batch=batches(longest=13))
def test_topm_equals_the_slow_oracle(size, batch):
    assert_equals_oracle([make(TopMAttention, size=size)], top_m, batch)


@given(batch=batches(longest=13))
def test_equals_full_attention_where_all_keys_are_kept(batch):
    batch = {**batch, "lengths": [*batch["lengths"], 20]}  # the last row is beyond m
    (out, _), (full, _) = (
        make(kind, size=13)(*draw(**batch), ()) for kind in (TopMAttention, FullAttention)
    )
    for i, n in enumerate(batch["lengths"][:-1]):
        torch.testing.assert_close(out[i, :n], full[i, :n], **EXACT)
    assert (out[-1, :20] - full[-1, :20]).abs().max() > 1e-6
    assert torch.equal(make(TopMAttention, size=99)(*draw(**batch), ())[0], full)


def test_equal_keys_are_kept_in_order():
    mixer, (x, _, _) = make(TopMAttention), draw([9], seed=1)
    torch.nn.init.zeros_(mixer.q_proj.weight)
    torch.nn.init.zeros_(mixer.q_proj.bias)
    expected = mixer.out_proj(mixer.v_proj(x[:, :3]).mean(dim=1))
    torch.testing.assert_close(mixer(x, None, None, ())[0], expected.expand_as(x), **EXACT)


def test_dropout_is_the_same_in_forward_and_backward():
    """The loss is linear in the values, so that it is their gradient's product with them."""
    mixer, values = make(TopMAttention, dropout=0.5), []
    mixer.v_proj.register_forward_hook(lambda _, __, out: values.append(out))
    out = mixer(*draw([20], seed=1), ())[0].sum() - 20 * mixer.out_proj.bias.sum()
    (grad,) = torch.autograd.grad(out, values[0])
    torch.testing.assert_close((grad * values[0]).sum(), out, **EXACT)


def test_memory_is_linear_in_length(monkeypatch):
    """No tensor grows with the square, and the graph holds the inputs' size a few times."""
    monkeypatch.setattr(chosen_keys, "_LOGITS_PER_CHUNK", 2**11)
    mixer, held = make(TopMAttention, size=4), []
    for n in (128, 256):
        x, saved = draw([n])[0].requires_grad_(), []

        def pack(t, saved=saved):
            saved.append(weakref.ref(t))
            return t

        with LargestTensor() as largest:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                out = mixer(x, None, None, ())[0]
            kept = [t.untyped_storage() for t in (ref() for ref in saved) if t is not None]
            sizes = {storage.data_ptr(): storage.nbytes() // 8 for storage in kept}
            out.sum().backward()
        assert largest.numel <= 2**11
        held.append(sum(sizes.values()))
    assert held[1] < 2.1 * held[0]
    assert held[1] < 12 * x.numel()
