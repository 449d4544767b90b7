"""The pooling operators against their slow oracles, and what must hold of any of them."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_updown.attention.pooling import (
    POOLINGS,
    RowSizes,
    combine,
    rank_by_score,
    straight_through,
    sum_by_slot,
    tie_tolerance,
)

NAMES = list(POOLINGS)
BASES = st.sampled_from([2.0, 20.0, 1e6])  # the largest is the largest that is taken
rows = st.lists(
    st.tuples(st.integers(0, 23), st.integers(1, 9)), min_size=1, max_size=5
)  # (length, target)


def run(name, rows, seed, base=20.0, ties=False):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([length for length, _ in rows])
    targets = torch.tensor([target for _, target in rows])
    width = int(lengths.max()) + seed % 3
    scores = torch.rand(len(rows), max(1, width), generator=generator, dtype=torch.float64)
    if ties:
        scores = (scores * 3).round() / 4 + 0.1
    num_slots = max(1, int(torch.minimum(lengths, targets).max()))
    reduction = max(length / target for length, target in rows)
    sizes = RowSizes(lengths, targets, num_slots, reduction)
    if len(set(rows)) == 1 and rows[0][0] == scores.size(1):
        sizes = RowSizes(None, rows[0][1], num_slots, reduction)
    pooled = POOLINGS[name](scores, sizes, base, tie_tolerance(scores.dtype))
    return scores, num_slots, pooled


@given(
    st.sampled_from(NAMES),
    rows,
    st.integers(0, 99),
    st.sampled_from([2.0, 20.0, 1e6]),
    st.booleans(),
)
def test_equals_the_oracle_for_any_lengths_targets_and_ties(name, rows, seed, base, ties):
    scores, num_slots, pooled = run(name, rows, seed, base, ties)
    weights = pooled.log_weights.exp()
    if name == "topk":
        weights = straight_through(pooled.log_weights.exp(), pooled.leader)
    for row, (length, target) in enumerate(rows):
        items = reference.pool(name, scores[row, :length], target, base) if length else []
        assert len(items) == min(length, target)
        for slot, item in enumerate(items):
            members = (pooled.assignment[row] == slot).nonzero().flatten().tolist()
            assert members == sorted(item.weights)
            assert pooled.leader[row].logical_and(
                pooled.assignment[row] == slot
            ).nonzero().item() == (item.leader)
            torch.testing.assert_close(pooled.scores[row, slot], item.score, rtol=0, atol=1e-12)
            expected = torch.stack([item.weights[i] for i in members])
            if name == "topk":
                expected = torch.tensor([float(i == item.leader) for i in members]).double()
            torch.testing.assert_close(weights[row, members], expected, rtol=0, atol=1e-12)
        assert (pooled.scores[row, len(items) :] == 0).all()
        assert (pooled.assignment[row, length:] == num_slots).all()


@given(st.sampled_from(NAMES), rows, st.integers(0, 99))
def test_slots_are_convex_combinations_and_lose_no_count(name, rows, seed):
    scores, num_slots, pooled = run(name, rows, seed)
    lengths = torch.tensor([length for length, _ in rows])
    x = torch.randn(*scores.shape, 3, dtype=torch.float64)
    is_real = (torch.arange(scores.size(1)) < lengths.unsqueeze(1)).double()
    shares = sum_by_slot(pooled.log_weights.exp() * is_real, pooled.assignment, num_slots)
    counts = sum_by_slot(is_real, pooled.assignment, num_slots)
    used = counts > 0
    torch.testing.assert_close(shares[used], torch.ones_like(shares[used]))
    assert counts.sum(1).tolist() == lengths.tolist()
    slots = combine(x, pooled.assignment, pooled.log_weights.exp(), num_slots)
    dense = torch.zeros(*slots.shape[:2], x.size(1), dtype=torch.float64)
    for row in range(len(rows)):
        for token in range(int(lengths[row])):
            dense[row, pooled.assignment[row, token], token] = pooled.log_weights[row, token].exp()
    torch.testing.assert_close(slots, dense @ x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_full(dtype):
    """A GPU adds one token after the other in the precision of the sums, in any order; a CPU does
    not, so that its results would not tell."""

    class Sums(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "index_add" in str(func):
                precisions.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    precisions = []
    with Sums():
        x, slot = torch.randn(2, 9, 3).to(dtype), torch.arange(9).expand(2, 9) // 3
        assert combine(x, slot, torch.full((2, 9), 1 / 3), 3).dtype == dtype
    assert precisions == [torch.float32]


@pytest.mark.parametrize("name", NAMES)
def test_is_the_identity_on_a_row_that_fits(name):
    scores = torch.rand(2, 5).double()
    targets = torch.tensor([5, 9])
    pooled = POOLINGS[name](scores, RowSizes(torch.tensor([5, 4]), targets, 5, 1.0), 20.0)
    assert pooled.assignment.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 5]]
    assert (pooled.log_weights == 0).all()
    torch.testing.assert_close(pooled.scores[0], scores[0])


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_topk_keeps_exactly_the_best(length, target, seed):
    scores = torch.rand(1, length, generator=torch.Generator().manual_seed(seed)).double()
    sizes = RowSizes(None, target, min(length, target), length / target)
    pooled = POOLINGS["topk"](scores, sizes, 20.0)
    best = scores[0].argsort(descending=True)[:target].sort().values
    assert pooled.leader[0].nonzero().flatten().tolist() == best.tolist()


@given(st.integers(1, 40), st.integers(0, 20), st.integers(0, 99), BASES)
def test_seeded_is_the_tournament_where_one_round_is_enough(target, more, seed, base):
    length = target + min(more, target)
    scores = torch.rand(1, length, generator=torch.Generator().manual_seed(seed)).double()
    sizes = RowSizes(None, target, target, length / target)
    one_sort, rounds = (POOLINGS[name](scores, sizes, base) for name in ("seeded", "tournament"))
    for ours, theirs in zip(one_sort, rounds):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["seeded", "tournament", "topk"])
def test_gradient_reaches_every_paired_score(name):
    scores = torch.rand(1, 16).double().requires_grad_()
    pooled = POOLINGS[name](scores, RowSizes(None, 4, 4, 4.0), 20.0)
    weights = straight_through(pooled.log_weights.exp(), pooled.leader)
    slots = combine(torch.randn(1, 16, 3).double(), pooled.assignment, weights, 4)
    slots.square().sum().backward()
    assert (scores.grad != 0).sum() >= 15


@pytest.mark.parametrize("name", ["seeded", "tournament"])
def test_the_soft_gradient_is_that_of_the_weights(name):
    x = torch.randn(1, 9, 2).double()

    def slots(scores):
        pooled = POOLINGS[name](scores, RowSizes(None, 3, 3, 3.0), 5.0)
        return combine(x, pooled.assignment, pooled.log_weights.exp(), 3)

    scores = torch.rand(1, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(slots, scores)


@given(
    name=st.sampled_from(NAMES),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    words=st.lists(st.integers(0, 4), min_size=2, max_size=40),
    target=st.integers(1, 9),
    seed=st.integers(0, 9999),
)
def test_rounding_does_not_decide_between_repeated_tokens(name, dtype, words, target, seed):
    """A word has one score, but for noise as large as the rounding of its vector."""
    generator = torch.Generator().manual_seed(seed)
    exact = torch.tensor([[0.05, 0.3, 0.55, 0.75, 0.95]])[:, words]
    exact = exact.to(torch.promote_types(dtype, torch.float32))
    noise = (torch.rand(exact.shape, generator=generator) - 0.5) * tie_tolerance(dtype)
    sizes = RowSizes(None, target, target, len(words) / target)
    pooled = [
        POOLINGS[name](scores, sizes, 20.0, tie_tolerance(dtype))
        for scores in (exact, exact + noise.to(exact))
    ]
    assert rank_by_score(exact + noise.to(exact), tie_tolerance(dtype)).equal(
        exact.argsort(dim=1, descending=True, stable=True)
    )
    if dtype in (torch.float64, torch.float32):  # noise grows with the rounds of a tournament
        assert pooled[0].assignment.equal(pooled[1].assignment)
        assert pooled[0].leader.equal(pooled[1].leader)


def test_a_dense_crowd_of_different_scores_is_no_tie():
    tolerance = tie_tolerance(torch.float32)
    scores = 0.5 + torch.arange(64).flip(0) * tolerance / 2
    assert rank_by_score(scores.flip(0).unsqueeze(0), tolerance).tolist() == [
        list(range(63, -1, -1))
    ]
