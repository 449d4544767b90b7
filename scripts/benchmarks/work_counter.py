"""Operations, bytes, launches and waits of whatever runs, counted as torch dispatches it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fairseq_updown.models.updown_transformer import model as updown_model

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
# A weight packed in 8 bits is no tensor: what is read of it, a byte each, follows from the shapes.
_QUANTIZED = getattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32", object())
FORMULAS[_QUANTIZED] = lambda x, *_, out_val: 2 * out_val.numel() * x.size(-1)
# They return memory that nobody has written to, or an old tensor under a new name.
_FREE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "alias",
}
_FREE |= {"_unsafe_view", "_reshape_alias", "lift_fresh", "is_same_size"}
# The host waits for the device to learn a value, or how large a result is.
_WAITS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "unique_consecutive"}
_WAITS |= {"_unique2", "unique_dim"}


class WorkCounter(TorchDispatchMode):
    """Counts what runs under it: operations by torch's formulas (matrix products, attention).

    Attributes:
        flops: floating-point operations; the masked half of causal attention counts, as in torch.
        launches: operations that compute, by name: what an eager GPU launches one by one, at 5 to
            10 microseconds of its host each. Views and unwritten memory do not count.
        waits: operations, by name, for whose result the host waits.
        bytes_read: size of those tensors of :meth:`watch` that any operation was given, and of
            weights in 8 bits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.bytes_read = 0
        self._watched: dict[int, int] = {}

    def __enter__(self) -> WorkCounter:
        tolist = Tensor.tolist

        def counted(tensor: Tensor) -> Any:  # which torch does not dispatch
            self.waits["tolist"] += 1
            return tolist(tensor)

        self._patch = patch.object(Tensor, "tolist", counted)
        self._patch.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.stop()

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
        name = func.overloadpacket.__name__
        if self._watched and name != "embedding":  # of which a few rows are read
            for tensor in tensors_in([args, kwargs]):
                self.bytes_read += self._watched.pop(tensor.untyped_storage().data_ptr(), 0)
        if name in _WAITS:
            self.waits[name] += 1
        elif name not in _FREE and not _is_view(func):
            self.launches[name] += 1
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None:
            return func(*args, **kwargs)
        result = self.multiply(func, args, kwargs)
        self.flops += formula(*args, **kwargs, out_val=result)
        if func._overloadpacket is _QUANTIZED:
            self.bytes_read += result.size(-1) * args[0].size(-1)
        return result

    def multiply(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of an operation that has a formula."""
        return func(*args, **kwargs)


@contextmanager
def as_on_gpus() -> Iterator[None]:
    """Models that are built and run herein launch what they launch on a GPU: our forms for CPUs are
    left out, and dropout is one operation."""

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, True)[0] if training and p else x

    with (
        patch.object(updown_model, "accelerate", lambda model: model),
        patch.object(F, "dropout", dropout),
    ):
        yield


def _is_view(func: Any) -> bool:
    """Whether an operation only returns its argument's memory, unwritten."""
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


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
