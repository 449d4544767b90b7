"""`--updown-mixer hier`."""

import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import (
    DIM,
    HEADS,
    assert_counts_are_repetitions,
    assert_equals_oracle,
    assert_linear,
    batches,
    draw,
    make,
    make_stage,
)
from toy import EXACT

from fairseq_updown.mixers.full import FullAttention
from fairseq_updown.mixers.hier import HierarchicalAttention


def hier(mixer, x, counts, scores, state):
    size, within, vectors = mixer.settings.block_size, [], []
    keys = [(t, reference.key_bias(mixer, c, s)) for t, c, s in zip(x, counts, scores)]
    for i, token in enumerate(x):
        start = i // size * size
        within.append(reference.softmax_heads(mixer, token, keys[start : start + size]))
    for start in range(0, len(x), size):
        vector = x[start] + mixer.out_proj(within[start])
        centred = vector - vector.mean()
        vectors.append(centred / (centred.square().mean() + 1e-5).sqrt())
    keys = [(vector, x.new_zeros(HEADS)) for vector in vectors]
    among = [reference.softmax_heads(mixer, vector, keys) for vector in vectors]
    both = [heads + among[i // size] for i, heads in enumerate(within)]
    return mixer.out_proj(torch.stack(both)), None


@given(block_size=st.integers(1, 6), batch=batches(longest=14))
def test_hier_equals_the_slow_oracle(block_size, batch):
    assert_equals_oracle([make(HierarchicalAttention, block_size=block_size)], hier, batch)


def test_a_token_of_hier_with_a_count_is_so_many_tokens_of_its_block():
    small, large = (make_stage(HierarchicalAttention, block_size=size) for size in (3, 6))
    assert_counts_are_repetitions(small, coarser=large)


def test_a_sequence_of_one_block_sees_a_document_of_one_vector():
    mixer = make(HierarchicalAttention, block_size=8)
    x, _, _ = draw([5])
    full = FullAttention.forward(mixer, x, None, None, ())[0]
    vector = torch.nn.functional.layer_norm(x[:, :1] + full[:, :1], (DIM,))
    expected = full + mixer.v_proj(vector) @ mixer.out_proj.weight.T
    torch.testing.assert_close(mixer(x, None, None, ())[0], expected, **EXACT)


def test_another_block_is_seen_through_its_vector_alone():
    """Swapping two later tokens of a block leaves its vector, and so the other blocks, alone."""
    mixer, (x, _, _) = make(HierarchicalAttention, block_size=4), draw([8])
    swapped = x[:, [0, 1, 2, 3, 4, 6, 5, 7]]
    changed = x.clone()
    changed[:, 6] += 1.0
    before, same, other = (mixer(t, None, None, ())[0][:, :4] for t in (x, swapped, changed))
    torch.testing.assert_close(before, same, **EXACT)
    assert (before - other).abs().max() > 1e-3


def test_hier_is_linear_while_blocks_are_few():
    assert_linear(make(HierarchicalAttention, block_size=16), growth=2.1)
