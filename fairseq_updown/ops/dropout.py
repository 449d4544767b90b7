"""Dropout that does not wait for the random numbers."""

from typing import Any, Tuple

import torch
from fairseq.modules import FairseqDropout
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# A mask element is drawn from 16 random bits, so the probability is kept to 2^-17 (7.6e-6).
_BITS = 16


class QuickDropout(FairseqDropout):
    """fairseq's dropout; on a CPU it draws four mask elements from each 64-bit random number.

    torch draws one number for each, in one thread, which takes longer there than the Transformer's
    own sums. The mask is kept as one byte an element. Elsewhere it is fairseq's.
    """

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        dropped = round(self.p * 2**_BITS)  # of 2^16 values
        active = self.training or self.apply_during_inference
        if not active or x.device.type != "cpu" or not 0 < dropped < 2**_BITS:
            return super().forward(x, inplace)
        return _Dropout.apply(x, dropped)

    @classmethod
    def replace_in(cls, model: nn.Module) -> None:
        """Puts this in the place of every dropout of fairseq's in `model`."""
        for module in model.modules():
            for name, child in module.named_children():
                if type(child) is FairseqDropout:
                    setattr(module, name, cls(child.p, child.module_name))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        per_number = 64 // _BITS
        numbers = torch.empty(-(-x.numel() // per_number), dtype=torch.int64)
        bits = numbers.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
        drop = bits < dropped - 2 ** (_BITS - 1)
        ctx.save_for_backward(drop)
        ctx.scale = 2**_BITS / (2**_BITS - dropped)
        return torch.where(drop, 0.0, x).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Tuple[Tensor, None]:
        (drop,) = ctx.saved_tensors
        return torch.where(drop, 0.0, grad_out).mul_(ctx.scale), None
