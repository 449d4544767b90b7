"""Operations and bytes of whatever runs, counted as torch dispatches them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_ATEN = torch.ops.aten
# torch counts the operations of the attention kernels for GPUs, not of the one for CPUs.
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _ATEN._scaled_dot_product_flash_attention
    ],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}
if hasattr(torch.ops.mkl, "_mkl_linear"):  # by a packed weight, in decoding steps
    FORMULAS[torch.ops.mkl._mkl_linear] = lambda x, packed, weight, *_, out_val: (
        2 * out_val.numel() * weight.size(1)
    )


class WorkCounter(TorchDispatchMode):
    """Counts what runs under it: operations by torch's formulas (matrix products, attention).

    Attributes:
        flops: floating-point operations; the masked half of causal attention counts, as in torch.
        bytes_read: size of those tensors of :meth:`watch` that any operation was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.bytes_read = 0
        self._watched: dict[int, int] = {}

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that count as read once something uses them; views share a storage."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            size = min(tensor.nbytes, storage.nbytes())
            self._watched[storage.data_ptr()] = max(size, self._watched.get(storage.data_ptr(), 0))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._watched:
            for tensor in tensors_in([args, kwargs]):
                self.bytes_read += self._watched.pop(tensor.untyped_storage().data_ptr(), 0)
        result = func(*args, **kwargs)
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts, lists and tuples; packed weights come beside plain ones."""
    if isinstance(value, Tensor):
        if not value.is_mkldnn:
            yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
