"""The first update of a process, in which operators are tried out."""

import pytest
import torch
from toy import build, draw_rows, logits

from fairseq_updown.models.updown_transformer import layers
from fairseq_updown.ops.block_attention import kernel_works


@pytest.mark.parametrize("flag", ["checkpoint_activations", "offload_activations"])
def test_a_trial_within_a_checkpointed_layer_is_none_of_its_tensors(flag: str) -> None:
    source, target = torch.stack(draw_rows([23], 1)), torch.stack(draw_rows([9], 2))
    expected = build(dropout=0.3).train()
    torch.manual_seed(5)
    logits(expected, source, target).square().sum().backward()
    model = build(**{flag: True}, dropout=0.3).train()
    kernel_works.cache_clear()
    torch.manual_seed(5)
    logits(model, source, target).square().sum().backward()
    for one, other in zip(model.parameters(), expected.parameters()):
        torch.testing.assert_close(one.grad, other.grad)


@torch.no_grad()
def test_without_a_backward_pass_nothing_is_moved_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = torch.stack(draw_rows([23], 1)), torch.stack(draw_rows([9], 2))
    model = build(offload_activations=True, checkpoint_activations=True)
    monkeypatch.setattr(layers, "_to_cpu", None)
    assert logits(model, source, target).equal(logits(build(), source, target))
