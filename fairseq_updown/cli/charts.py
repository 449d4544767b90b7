"""Pictures, by matplotlib, which is an extra; they need no screen."""

from __future__ import annotations

import importlib.util
import io
import logging
from pathlib import Path
from typing import Any

from ..errors import UserError

# Okabe and Ito's palette, which colour-blind readers can tell apart; markers for print.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"


def has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def check_matplotlib(option: str, path: Path) -> None:
    """Refuses, before any work, a picture that could not be drawn.

    Raises:
        UserError: naming the option and the path.
    """
    if not has_matplotlib():
        remedy = "pip install matplotlib, or leave it out"
        raise UserError(f"{option} {path} needs matplotlib: {remedy}")


def new_figure(**options: Any) -> Any:
    """A figure whose parts do not overlap."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # else it lists all fonts
    from matplotlib.figure import Figure

    return Figure(layout="constrained", **options)


def image(figure: Any, kind: str = "png") -> bytes:
    """The content of its file, "png" or "svg"; the same figures give the same bytes."""
    import matplotlib

    content = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "figures"}):
        figure.savefig(content, format=kind, dpi=140, metadata=metadata)
    return content.getvalue()
