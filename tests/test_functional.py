"""The pure tensor functions that have no other test of their own."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_updown.modules.functional import is_largest


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.integers(1, 12))
def test_of_equal_numbers_the_first_are_the_largest(values, size):
    size = min(size, len(values))
    first = sorted(range(len(values)), key=lambda j: (-values[j], j))[:size]
    largest = is_largest(torch.tensor([values], dtype=torch.float64), size)[0]
    assert largest.nonzero().flatten().tolist() == sorted(first)
