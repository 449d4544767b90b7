"""The feed-forward part of a layer, whose hidden activations are the largest tensors of a model."""

from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .step_linear import Linear


def feed_forward(layer: Any, x: Tensor, linear: Linear = nn.Module.__call__) -> Tensor:
    """fc2(dropout(activation(fc1(x)))) of a fairseq encoder or decoder layer.

    In training, plain ReLU, fairseq's default, works in place in both directions.
    """
    dropout = layer.activation_dropout_module
    dropped = dropout.p > 0 and (dropout.training or dropout.apply_during_inference)
    plain = type(layer.fc1) is nn.Linear and type(layer.fc2) is nn.Linear
    autocast = torch.is_autocast_enabled(x.device.type)
    training = torch.is_grad_enabled()
    if training and layer.activation_fn is F.relu and plain and not dropped and not autocast:
        tensors = (layer.fc1.weight, layer.fc1.bias, layer.fc2.weight, layer.fc2.bias)
        return _ReluFeedForward.apply(x.flatten(0, -2), *tensors).view(*x.shape[:-1], -1)
    return linear(layer.fc2, dropout(layer.activation_fn(linear(layer.fc1, x))))


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
