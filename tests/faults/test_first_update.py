"""The first update of a process, in which operators are tried out."""

import pytest
import torch
from toy import build, draw_rows, logits

from fairseq_updown.ops.block_attention import kernel_works


@pytest.mark.parametrize("flag", ["checkpoint_activations", "offload_activations"])
def test_a_trial_within_a_checkpointed_layer_is_none_of_its_tensors(flag: str) -> None:
    source, target = torch.stack(draw_rows([23], 1)), torch.stack(draw_rows([9], 2))
    expected = build()
    logits(expected, source, target).square().sum().backward()
    model = build(**{flag: True})
    kernel_works.cache_clear()
    logits(model, source, target).square().sum().backward()
    for one, other in zip(model.parameters(), expected.parameters()):
        torch.testing.assert_close(one.grad, other.grad)
