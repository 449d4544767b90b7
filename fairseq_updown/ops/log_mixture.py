"""The mixture of what is written and what is copied, with no more memory than a softmax takes.

The plain form, `log_mixture` in `attention/copying.py`, keeps for the backward pass what autograd
asks for: several tensors of target length x vocabulary. This one keeps log p alone, from which the
vocabulary's own distribution follows again.
"""

from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention.copying import LEAST_MASS
from ..attention.functional import full_precision


class _LogMixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, mass: Tensor, log_odds: Tensor, index: Tensor) -> Tensor:
        """log p, see :func:`log_mixture`; all but the logits at least float32."""
        log_probs = full_precision(logits).log_softmax(dim=-1)
        log_probs += F.logsigmoid(log_odds).unsqueeze(-1)
        own = log_probs.gather(2, index)
        log_mass = torch.where(mass < LEAST_MASS, -torch.inf, mass.log())
        copied = log_mass + F.logsigmoid(-log_odds).unsqueeze(-1)
        gain = torch.logaddexp(own, copied) - own
        log_probs.scatter_add_(2, index, gain)
        ctx.save_for_backward(log_probs, mass, log_odds, index, gain)
        ctx.logits_dtype = logits.dtype
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor, None]:
        """At a word's mass the gradient is grad (1 - g) / p. With s the part of its probability
        that is copied and v that of the vocabulary's distribution, it is h = grad (1 - s) at log v,
        and h - v sum(h) at the logits."""
        log_probs, mass, log_odds, index, gain = ctx.saved_tensors
        rate = (F.logsigmoid(-log_odds).unsqueeze(2) - log_probs.gather(2, index)).exp_()
        grad_mass = (grad.gather(2, index) * rate).masked_fill_(mass < LEAST_MASS, 0)
        grad_copied = grad_mass * mass
        total, total_copied = grad.sum(dim=2), grad_copied.sum(dim=2)
        total = (total - total_copied).unsqueeze(2)
        grad_logits = log_probs - F.logsigmoid(log_odds).unsqueeze(-1)
        grad_logits.scatter_add_(2, index, -gain).exp_().mul_(-total).add_(grad)
        grad_logits.scatter_add_(2, index, -grad_copied)
        generated = log_odds.sigmoid()
        grad_log_odds = (1 - generated) * total.squeeze(2) - generated * total_copied
        return grad_logits.to(ctx.logits_dtype), grad_mass, grad_log_odds, None


def log_mixture_once(logits: Tensor, mass: Tensor, log_odds: Tensor, index: Tensor) -> Tensor:
    """:func:`~..attention.copying.log_mixture`, once differentiable."""
    return _LogMixture.apply(logits, mass, log_odds, index)
