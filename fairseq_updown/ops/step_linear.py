"""Linear layers in the steps of a generation, where reading the weights takes most of the time."""

from typing import Any, Callable, Dict, Optional

import torch
from torch import Tensor, nn

Linear = Callable[[nn.Module, Tensor], Tensor]

# Rows of a step for which packed weights are quicker.
_FEW_ROWS = range(2, 65)
# Packing takes as long as this many steps gain, about.
_STEPS_BEFORE = 8
_CAN_PACK = hasattr(torch.ops.mkl, "_mkl_linear")
_STATE_NAME = "step_linear"


class StepLinear:
    """Calls linear layers with the few rows of a decoding step.

    On a CPU, torch's library multiplies sooner by a weight that was packed for the very number of
    rows. Weights are packed once several steps had as many; the packed copies end with the
    generation whose incremental state holds them, so that no training can make them stale.
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

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """`module(x)`, for x `(*, in_features)`."""
        if not self.can_pack(module, x):
            return module(x)
        assert isinstance(module, nn.Linear)
        if module not in self.packed:
            weight = module.weight.detach()
            self.packed[module] = torch.ops.mkl._mkl_reorder_linear_weight(weight, self.rows)
        packed = self.packed[module]
        return torch.ops.mkl._mkl_linear(x, packed, module.weight, module.bias, self.rows)

    def can_pack(self, module: nn.Module, x: Tensor) -> bool:
        return (
            _CAN_PACK
            and self.steps > _STEPS_BEFORE
            and self.rows in _FEW_ROWS
            and x.numel() == self.rows * x.size(-1)
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and type(module) is nn.Linear
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )


def step_linear(incremental_state: Optional[Dict[str, Any]]) -> Linear:
    """How to call a linear layer: as the generation's state says, or simply."""
    return (incremental_state or {}).get(_STATE_NAME, {}).get("linear", nn.Module.__call__)


def begin_step(incremental_state: Dict[str, Any], rows: int) -> None:
    """Tells the generation's state that a step of `rows` hypotheses begins."""
    incremental_state.setdefault(_STATE_NAME, {"linear": StepLinear()})["linear"].begin(rows)
