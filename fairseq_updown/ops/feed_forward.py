"""The feed-forward part of a layer, whose hidden activations are the largest tensors of a model.

The plain form is the layer's own method `feed_forward`.
"""

from functools import partial
from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def use_relu_in_place(layer: Any) -> None:
    """Makes a layer's `feed_forward` work in place where its activation is plain ReLU, fairseq's
    default: one tensor of hidden activations less, and another less in the backward pass where
    nothing is cast."""
    layer.feed_forward = partial(_feed_forward, layer)


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    if not _applies(layer):
        return type(layer).feed_forward(layer, x)
    if not torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return layer.fc2(F.relu(layer.fc1(x), inplace=True))
    tensors = (layer.fc1.weight, layer.fc1.bias, layer.fc2.weight, layer.fc2.bias)
    return _ReluFeedForward.apply(x.flatten(0, -2), *tensors).view(*x.shape[:-1], -1)


def _applies(layer: Any) -> bool:
    dropout = layer.activation_dropout_module
    dropped = dropout.p > 0 and (dropout.training or dropout.apply_during_inference)
    plain = _is_plain(layer.fc1) and _is_plain(layer.fc2)
    return layer.activation_fn is F.relu and not dropped and plain


def _is_plain(module: nn.Module) -> bool:
    """Whether calling a linear layer does nothing but multiply by its parameters: no hook, as of
    quantization noise or pruning, changes them or looks on."""
    return (
        type(module) is nn.Linear
        and isinstance(module.weight, nn.Parameter)
        and not module._forward_pre_hooks
        and not module._forward_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
    )


class _ReluFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        hidden = F.relu(torch.addmm(bias1, x, weight1.t()), inplace=True)
        ctx.save_for_backward(x, hidden, weight1, weight2)
        return torch.addmm(bias2, hidden, weight2.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x, hidden, weight1, weight2 = ctx.saved_tensors
        grad = grad_out @ weight2
        torch.ops.aten.threshold_backward.grad_input(grad, hidden, 0, grad_input=grad)
        return (
            grad @ weight1,
            grad.t() @ x,
            grad.sum(dim=0),
            grad_out.t() @ hidden,
            grad_out.sum(dim=0),
        )
