"""The forward pass in mixed precision: matrix products in bfloat16, all else in float32."""

import logging
import os
import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Callable

import torch
from torch import Tensor

from ..attention.functional import HALVES

logger = logging.getLogger(__name__)

OFF, BFLOAT16, ALWAYS = AUTOCAST = ("off", "bfloat16", "bfloat16-always")

# Products in bfloat16 are oneDNN's on a CPU. It keeps what it compiled for the last 1,024 shapes,
# about a megabyte each; documents of different lengths rarely ask for an old one again.
_KEPT_COMPILED = "128"


def mixed_precision(choice: str, weight: Tensor) -> AbstractContextManager:
    """`torch.autocast` to bfloat16 as `--updown-autocast` says, or a context that does nothing.

    Args:
        choice: "off"; "bfloat16", where the device multiplies faster in it; "bfloat16-always".
        weight: of the model. One in half precision already multiplies in it, and stays as it is.
    """
    device = weight.device
    if weight.dtype in HALVES:
        return nullcontext()
    if choice != OFF and device.type == "cpu":
        _bound_compiled_products()
    if choice == OFF or (choice == BFLOAT16 and not _is_fast_or_told(device.type)):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@cache
def _bound_compiled_products() -> None:
    """For the process, if nothing was multiplied in bfloat16 yet; what the user has set stays."""
    if not any(f"{prefix}_PRIMITIVE_CACHE_CAPACITY" in os.environ for prefix in ("ONEDNN", "DNNL")):
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = _KEPT_COMPILED


@cache
def _is_fast_or_told(device_type: str) -> bool:
    """Whether bfloat16 pays; logs once if not."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    gain = _gain_of_bfloat16(torch.device(device_type))
    if gain > 1.3:
        logger.info("--updown-autocast bfloat16: %.2g times as fast as float32 here", gain)
        return True
    logger.warning(
        "--updown-autocast bfloat16: matrix products in it are %.2g times as fast as in float32 on "
        "this processor, so the model stays in float32; bfloat16-always insists",
        gain,
    )
    return False


def _gain_of_bfloat16(device: torch.device, size: int = 384, tries: int = 5) -> float:
    """How many times faster a matrix product is in bfloat16 than in float32: some milliseconds."""

    def fastest(multiply: Callable[[], Tensor]) -> float:
        times = []
        for _ in range(tries):
            start = time.perf_counter()
            multiply()
            times.append(time.perf_counter() - start)
        return min(times)

    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        x = torch.linspace(-1, 1, size * size, device=device).view(size, size)
        low = x.bfloat16()
        return fastest(lambda: x @ x) / fastest(lambda: low @ low)
