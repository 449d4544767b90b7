"""Counts what a GPU would launch and wait for, on any device: every operation that computes.

An eager GPU spends 5 to 10 microseconds of its host on each launch, whatever the operation's size.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

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
WAITS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "unique_consecutive"}
WAITS |= {"_unique2", "unique_dim"}


class CountLaunches(TorchDispatchMode):
    """Counts the operations within its `with` block.

    Attributes:
        launches: name of the operation -> times it ran; views and unwritten memory not counted.
        waits: the same of those that the host waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.waits[name] += 1
        elif name not in _FREE and not _is_view(func):
            self.launches[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All launches."""
        return sum(self.launches.values())


def _is_view(func: Any) -> bool:
    """Whether an operation only returns its argument's memory, unwritten."""
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)
