"""Linear layers in the steps of a generation, where reading the weights takes most of the time.

On a CPU, torch's library multiplies sooner by a weight that was packed for the very number of rows.
The plain form is `nn.Linear` itself.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, Callable, Dict, Iterator, Optional

import torch
from torch import Tensor, nn

# Rows of a step for which packed weights are quicker.
_FEW_ROWS = range(2, 65)
# Packing takes as long as this many steps gain, about.
_STEPS_BEFORE = 8
_STATE_NAME = "packed_weights"


class PackedWeights:
    """The packed weights of one generation, which end with the incremental state that holds them,
    so that no training can make them stale.

    Weights are packed once several steps had as many rows.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.steps = 0
        self.packed: Dict[nn.Module, Tensor] = {}

    def begin(self, rows: int) -> None:
        """A step of `rows` hypotheses begins."""
        if rows != self.rows:
            self.rows, self.steps, self.packed = rows, 0, {}
        self.steps += 1

    def multiply(self, module: nn.Linear, x: Tensor) -> Tensor:
        """W x + b, for x `(*, in_features)` of as many rows as the step has."""
        if module not in self.packed:
            weight = module.weight.detach()
            self.packed[module] = torch.ops.mkl._mkl_reorder_linear_weight(weight, self.rows)
        packed = self.packed[module]
        return torch.ops.mkl._mkl_linear(x, packed, module.weight, module.bias, self.rows)

    def can_multiply(self, module: nn.Linear, x: Tensor) -> bool:
        """Whether :meth:`multiply` takes this layer and input, and pays."""
        return (
            self.steps > _STEPS_BEFORE
            and self.rows in _FEW_ROWS
            and x.numel() == self.rows * x.size(-1)
            and x.device.type == "cpu"
            and x.dtype == module.weight.dtype == torch.float32
            and isinstance(module.weight, nn.Parameter)  # what hooks compute may change
            and not module._forward_pre_hooks
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )


_of_this_step: "ContextVar[Optional[PackedWeights]]" = ContextVar("packed_weights", default=None)


@contextmanager
def decoding_step(incremental_state: Optional[Dict[str, Any]], rows: int) -> Iterator[None]:
    """Lets the layers of :func:`use_packed_weights` multiply by this generation's packed weights.

    Args:
        incremental_state: of the generation; None: nothing is packed.
        rows: hypotheses in this step.
    """
    if incremental_state is None:
        yield
        return
    weights = incremental_state.setdefault(_STATE_NAME, {"weights": PackedWeights()})["weights"]
    weights.begin(rows)
    token = _of_this_step.set(weights)
    try:
        yield
    finally:
        _of_this_step.reset(token)


def use_packed_weights(decoder: nn.Module) -> None:
    """Makes the linear layers of a decoder use packed weights in the steps of a generation."""
    if not packing_works():
        return
    for module in decoder.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_linear, module)  # type: ignore[method-assign]
    decoder.forward = partial(_step, decoder.forward)  # type: ignore[method-assign]


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    weights = _of_this_step.get()
    if weights is not None and weights.can_multiply(module, x):
        return weights.multiply(module, x)
    return nn.Linear.forward(module, x)


def _step(
    forward: Callable[..., Any],
    prev_output_tokens: Tensor,
    encoder_out: Any = None,
    incremental_state: Optional[Dict[str, Any]] = None,
    **kwargs: Any,
) -> Any:
    with decoding_step(incremental_state, prev_output_tokens.size(0)):
        return forward(prev_output_tokens, encoder_out, incremental_state, **kwargs)


@cache
def packing_works() -> bool:
    """Whether this torch has the operators, which are private to it, and they do what they did."""
    # The first model of a process must leave a seed as any other does.
    with torch.random.fork_rng(devices=[]):
        module = nn.Linear(8, 8)
    x = torch.ones(3, 8)
    weights = PackedWeights()
    weights.begin(3)
    try:
        with torch.no_grad():
            return torch.allclose(weights.multiply(module, x), module(x), atol=1e-5)
    except (AttributeError, RuntimeError):
        return False
