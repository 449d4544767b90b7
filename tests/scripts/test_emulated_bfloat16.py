"""Products in bfloat16 are those of a processor that has it, and trainings run on them."""

import json
from pathlib import Path
from typing import Any

import emulated_bfloat16
import pytest
import quality
import torch
from emulated_bfloat16 import EmulatedBfloat16
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode


class Products(TorchDispatchMode):
    """Notes the type of each product's first operand, of those that are really multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
            self.types.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [(5,), (2, 5)])
def test_products_are_exact_sums_rounded_once(rows: tuple[int, ...]) -> None:
    """Of integers: no sum here is rounded in float32, and none in bfloat16 before the end."""
    torch.manual_seed(0)
    x = torch.randint(-9, 9, (*rows, 300)).bfloat16().requires_grad_()
    weight = torch.randint(-9, 9, (7, 300)).bfloat16().requires_grad_()
    bias = torch.randint(-9, 9, (7,)).bfloat16()
    with Products() as multiplied, EmulatedBfloat16():
        out = linear(x, weight, bias)
        out.sum().backward()
    assert multiplied.types == [torch.float32] * 3
    exact = linear(x.double(), weight.double(), bias.double())
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16())
    ones = torch.ones_like(exact)
    assert torch.equal(x.grad, (ones @ weight.double()).bfloat16())
    summed = ones.flatten(0, -2).T @ x.double().flatten(0, -2)
    assert torch.equal(weight.grad, summed.bfloat16())


def test_other_types_are_left_alone() -> None:
    x, weight = torch.randn(5, 9), torch.randn(9, 7)
    expected = x @ weight
    with EmulatedBfloat16():
        assert torch.equal(x @ weight, expected)


@pytest.mark.slow
def test_what_a_script_starts_is_emulated(
    in_forks: None, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    fork = quality.run_installed

    def note(order: Any, log: Path, environment: Any) -> Any:
        started.append(order)
        return fork(order, log, environment)

    monkeypatch.setattr(quality, "run_installed", note)
    options = ["--updates", "4", "--validations", "1", "--seeds", "1", "--source-tokens", "30"]
    order = ["quality", str(work / "bin"), "--out", str(tmp_path), *options, "--systems", "updown"]
    assert emulated_bfloat16.main([*order, "--", "--updown-autocast", "bfloat16-always"]) == 0
    assert [words[1:3] for words in started] == [
        [emulated_bfloat16.__file__, name] for name in ("fairseq-train", "fairseq-generate")
    ]
    assert json.loads((tmp_path / "updown-1" / "result.json").read_text())["train"]["curve"]
    assert quality.run_installed is note


@pytest.mark.parametrize("words", [["mixers"], ["mixers", "--sections", "cost", "summaries"]])
def test_what_would_not_be_emulated_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="choose among summaries, translation"):
        emulated_bfloat16.main(words)
    with pytest.raises(SystemExit, match="'recall' is none of quality, mixers"):
        emulated_bfloat16.main(["recall"])
