"""Lets fairseq's own checkpoints load with torch >= 2.6, and nothing else.

torch loads with `weights_only=True` and refuses every class it does not know. The classes below
are what fairseq stores beside tensors; none of them runs code when it is loaded.
"""

from argparse import Namespace
from typing import Any, List

import numpy as np
import torch


def _safe_classes() -> List[Any]:
    # numpy 1 and 2 store the same function under two module names; torch takes (object, name).
    array: Any = np.array(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    renamed: List[Any] = [
        (function, f"numpy.{package}.multiarray.{function.__name__}")
        for function in (array, scalar)
        for package in ("core", "_core")
    ]
    dtypes = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u4", "u8", "?")}
    return [Namespace, np.ndarray, np.dtype, *dtypes, *renamed]


torch.serialization.add_safe_globals(_safe_classes())
