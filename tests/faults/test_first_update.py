"""The first update of a process, in which operators are tried out."""

from typing import List

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


def test_what_is_checkpointed_is_not_kept_and_what_is_offloaded_is_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = torch.stack(draw_rows([23], 1)), torch.stack(draw_rows([9], 2))

    def kept(**options: bool) -> int:
        sizes: List[int] = []

        def pack(x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            logits(build(**options).train(), source, target)
        return sum(sizes)

    assert kept(checkpoint_activations=True) < 0.5 * kept()
    moved: List[torch.Tensor] = []
    monkeypatch.setattr(layers, "_to_cpu", lambda x: moved.append(x) or x)
    assert kept(checkpoint_activations=True, offload_activations=True) < 0.5 * kept()
    assert [x.shape for x in moved[:3]] == [(1, 23, 16), (1, 12, 16), (1, 6, 16)]
    assert len(moved) == 3 + 3


@torch.no_grad()
@pytest.mark.parametrize("offload", [False, True])
def test_without_a_backward_pass_nothing_is_checkpointed_or_moved(
    monkeypatch: pytest.MonkeyPatch, offload: bool
) -> None:
    source, target = torch.stack(draw_rows([23], 1)), torch.stack(draw_rows([9], 2))
    model = build(offload_activations=offload, checkpoint_activations=True)
    monkeypatch.setattr(layers, "_to_cpu", None)
    monkeypatch.setattr(layers, "checkpoint", None)
    assert logits(model, source, target).equal(logits(build(), source, target))
