"""Linear layers in the steps of a generation, where reading the weights takes most of the time.

A step multiplies some rows, one a hypothesis, by every weight of the decoder. Packed for a few rows
in float32, the weights are read sooner; in fewer bits, products of many rows are faster, too. The
plain form is `nn.Linear` itself.
"""

import logging
import sys
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_STATE_NAME = "packed_weights"


class Format:
    """How weights are packed, and multiplied by.

    Attributes:
        rows: of the steps in which this pays.
        first_step: packing pays from here on, counted from 1.
        of_rows: whether what is packed is for one number of rows only.
    """

    rows = range(1, sys.maxsize)
    first_step = 1
    of_rows = False

    def pack(self, module: nn.Linear, rows: int) -> Any:
        """What :meth:`multiply` needs of the layer."""
        raise NotImplementedError

    def multiply(self, packed: Any, module: nn.Linear, x: Tensor, rows: int) -> Tensor:
        """W x + b in float32, for x `(*, in_features)` in float32, of `rows` rows."""
        raise NotImplementedError

    def works(self) -> bool:
        """Whether this torch has the operators, and they do what they did: tried on one layer."""
        module, x = nn.utils.skip_init(nn.Linear, 8, 8), torch.linspace(-1, 1, 24).view(3, 8)
        try:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                module.weight.copy_(torch.linspace(-1, 1, 64).view(8, 8))
                module.bias.copy_(x[0])
                out = self.multiply(self.pack(module, 3), module, x, 3)
                return torch.allclose(out, module(x), atol=0.05)
        except (AttributeError, RuntimeError):
            return False


class Float32(Format):
    """Packed by torch's library for the very number of rows."""

    rows = range(2, 65)
    first_step = 9  # packing takes as long as this many steps gain, about
    of_rows = True

    def pack(self, module: nn.Linear, rows: int) -> Tensor:
        return torch.ops.mkl._mkl_reorder_linear_weight(module.weight.detach(), rows)

    def multiply(self, packed: Tensor, module: nn.Linear, x: Tensor, rows: int) -> Tensor:
        return torch.ops.mkl._mkl_linear(x, packed, module.weight, module.bias, rows)


class BFloat16(Format):
    """Weights and rows in bfloat16."""

    def pack(self, module: nn.Linear, rows: int) -> Tensor:
        return module.weight.detach().bfloat16()

    def multiply(self, packed: Tensor, module: nn.Linear, x: Tensor, rows: int) -> Tensor:
        out = F.linear(x.bfloat16(), packed).float()
        return out if module.bias is None else out.add_(module.bias)


class Int8(Format):
    """Weights in 8 bits, with a scale for each output; rows in 8 bits, with a scale for each row.

    A row's result does not depend on the rows beside it.
    """

    def pack(self, module: nn.Linear, rows: int) -> Any:
        weight = module.weight.detach()
        scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(weight.dtype).tiny) / 127
        return _pack_quantized(weight, scale.double())

    def multiply(self, packed: Any, module: nn.Linear, x: Tensor, rows: int) -> Tensor:
        largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        out = _multiply_quantized(x / largest, packed, _row_levels())
        return out * largest if module.bias is None else torch.addcmul(module.bias, out, largest)


def _pack_quantized(weight: Tensor, scale: Tensor) -> Any:
    """A weight in 8 bits, with a scale, `(outputs,)`, for each output."""
    zero = torch.zeros(len(scale), dtype=torch.long)
    with warnings.catch_warnings():  # torch will drop these types; `works` tries them
        warnings.simplefilter("ignore", UserWarning)
        quantized = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantized, None)


def _multiply_quantized(x: Tensor, packed: Any, levels: int) -> Tensor:
    """x in [-1, 1], in that many levels on either side of 0, times quantized weights.

    The levels are numbered from 1 on.
    """
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return multiply(x, 1 / levels, levels + 1, packed)


@cache
def _row_levels() -> int:
    """127; 63 on processors, those without VNNI, that add two 8-bit products up in 16 bits: there
    2 x 255 x 127 is too much, 2 x 127 x 127 is not."""
    ones = torch.ones(1, 64)
    packed = _pack_quantized(ones, torch.tensor([1 / 127.0]))
    exact = abs(float(_multiply_quantized(ones, packed, 127)) - 64) < 0.5
    return 127 if exact else 63


FORMATS: Dict[str, Format] = {"float32": Float32(), "bfloat16": BFloat16(), "int8": Int8()}


@cache
def _works(name: str) -> bool:
    works = FORMATS[name].works()
    if not works and name != "float32":
        logger.warning("--updown-step-precision %s: not with this torch; steps stay as is", name)
    return works


class PackedWeights:
    """The packed weights of one generation, which end with the incremental state that holds them,
    so that no training can make them stale; or of a model that will train no more.

    Args:
        format: how they are packed.
    """

    def __init__(self, format: Format) -> None:
        self.format = format
        self.rows = 0
        self.steps = 0
        self.packed: Dict[nn.Module, Any] = {}
        self.version: Dict[nn.Module, Tuple[int, int]] = {}

    def __reduce__(self) -> Tuple[Any, ...]:
        """A copy packs anew: torch's library copies nothing that it packed."""
        return PackedWeights, (self.format,)

    def begin(self, rows: int) -> None:
        """A step of `rows` hypotheses begins."""
        if rows != self.rows and self.format.of_rows:
            self.steps, self.packed = 0, {}
        self.rows = rows
        self.steps += 1

    def multiply(self, module: nn.Linear, x: Tensor, rows: int) -> Tensor:
        """W x + b, for x `(*, in_features)` of as many rows as the step has."""
        version = _version(module.weight)
        if self.version.get(module) != version or module not in self.packed:
            self.packed[module], self.version[module] = self.format.pack(module, rows), version
        return self.format.multiply(self.packed[module], module, x, rows)

    def can_multiply(self, module: nn.Linear, x: Tensor, rows: int) -> bool:
        """Whether :meth:`multiply` takes this layer and input, and pays."""
        return (
            self.steps >= self.format.first_step
            and rows in self.format.rows
            and x.numel() == rows * x.size(-1)
            and x.device.type == "cpu"
            and x.dtype == module.weight.dtype == torch.float32
            and isinstance(module.weight, nn.Parameter)  # what hooks compute may change
            and not module._forward_pre_hooks
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )


def _version(weight: Tensor) -> Tuple[int, int]:
    """Another one for other values, as a checkpoint may bring them."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


class _Step(NamedTuple):
    weights: PackedWeights
    rows: int


_this_step: "ContextVar[Optional[_Step]]" = ContextVar("step", default=None)


class StepPrecision(NamedTuple):
    """What the steps of a decoder multiply by.

    Attributes:
        name: of the format, a key of `FORMATS`.
        lasting: weights that all generations share; None: each has its own.
    """

    name: str
    lasting: Optional[PackedWeights] = None

    def for_inference(self) -> "StepPrecision":
        """Once the model trains no more: weights are packed once, not in every generation.

        Those for one number of rows stay with their generation.
        """
        format = FORMATS[self.name]
        return self if format.of_rows else self._replace(lasting=PackedWeights(format))

    @contextmanager
    def step(self, incremental_state: Optional[Dict[str, Any]], rows: int) -> Iterator[None]:
        """Lets the layers of :func:`pack_linear_layers` multiply by packed weights.

        Args:
            incremental_state: of the generation; None: nothing is packed.
            rows: hypotheses in this step.
        """
        if incremental_state is None or not _works(self.name):
            yield
            return
        weights = self.lasting
        if weights is None:
            fresh = {"weights": PackedWeights(FORMATS[self.name])}
            weights = incremental_state.setdefault(_STATE_NAME, fresh)["weights"]
        weights.begin(rows)
        token = _this_step.set(_Step(weights, rows))
        try:
            yield
        finally:
            _this_step.reset(token)


def use_packed_weights(decoder: nn.Module) -> None:
    """Makes the `forward` of a decoder be a step, in the precision of its attribute
    `step_precision`, and from the first step on its linear layers use packed weights where a step
    lets them. Not before: `--quant-noise-scalar` puts others in their place after the model is
    built, with all that they have, a `forward` too."""
    decoder.forward = partial(_step, decoder, decoder.forward)  # type: ignore[method-assign]


def pack_linear_layers(decoder: Any) -> None:
    """Makes the linear layers use packed weights; the second time it does nothing."""
    if not getattr(decoder, "packs_linear", False):
        decoder.packs_linear = True
        for module in decoder.modules():
            if type(module) is nn.Linear:
                module.forward = partial(_linear, module)  # type: ignore[method-assign]


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    step = _this_step.get()
    if step is not None and step.weights.can_multiply(module, x, step.rows):
        return step.weights.multiply(module, x, step.rows)
    return nn.Linear.forward(module, x)


def _step(
    decoder: Any,
    forward: Callable[..., Any],
    prev_output_tokens: Tensor,
    encoder_out: Any = None,
    incremental_state: Optional[Dict[str, Any]] = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if incremental_state is not None:
        pack_linear_layers(decoder)
    with decoder.step_precision.step(incremental_state, prev_output_tokens.size(0)):
        return forward(prev_output_tokens, encoder_out, incremental_state, *args, **kwargs)
