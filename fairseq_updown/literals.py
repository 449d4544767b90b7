"""fairseq evaluates no string any more, whoever wrote it: literals only.

fairseq calls `eval` on options such as `--adaptive-softmax-cutoff`, `--adam-betas` or `--wer-args`,
and it takes options from checkpoints, so that a file without any pickle could run code. With the
plugin imported the name `eval` means :func:`literal` in all modules of fairseq, for every model.
"""

import ast
import sys
from typing import Any

# All that calls `eval` and is not imported with the models.
import fairseq.criterions
import fairseq.data.codedataset
import fairseq.models
import fairseq.optim
import fairseq.tasks  # noqa: F401
import fairseq_cli.eval_lm
import fairseq_cli.validate  # noqa: F401

MOST_ITEMS = 10_000


def literal(text: str) -> Any:
    """The value of a Python literal, such as `"(0.9, 0.98)"` or `"[(512, 3)] * 20"`.

    Lists may be added, and multiplied with a number: fairseq's defaults of convolutions are.

    Raises:
        TypeError: not a string (fairseq's `eval_bool` counts on it).
        ValueError: anything but a literal.
    """
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no string")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        raise ValueError(
            f"{shown!r} is no literal: an option of a checkpoint or a command line must be a plain "
            "value such as 10000,20000 or (0.9, 0.98); it is never run as code"
        ) from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
        if isinstance(node.op, ast.Mult) and isinstance(left, list) and isinstance(right, int):
            if len(left) * right > MOST_ITEMS:
                raise ValueError(f"more than {MOST_ITEMS} items")
            return left * right
    return ast.literal_eval(node)


def never_evaluate() -> None:
    """Puts :func:`literal` in the place of the builtin in all of fairseq's modules."""
    for module in list(sys.modules.values()):
        # Its specification names also a module that runs as the program, `__main__`.
        name = getattr(getattr(module, "__spec__", None), "name", "")
        if name.partition(".")[0] in ("fairseq", "fairseq_cli"):
            vars(module)["eval"] = literal


never_evaluate()
