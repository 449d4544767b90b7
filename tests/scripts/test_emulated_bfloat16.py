"""Products in bfloat16 are those of a processor that has it, and trainings run on them."""

import re
from pathlib import Path

import emulated_bfloat16
import pytest
import quality
import torch
from commands import run, train_arguments
from emulated_bfloat16 import EmulatedBfloat16
from torch.nn.functional import linear


@pytest.mark.parametrize("rows", [(5,), (2, 5)])
def test_products_are_exact_sums_rounded_once(rows: tuple[int, ...]) -> None:
    """Integers are: no sum here is rounded in float32, and none in bfloat16 before the end."""
    torch.manual_seed(0)
    x = torch.randint(-9, 9, (*rows, 300)).bfloat16().requires_grad_()
    weight = torch.randint(-9, 9, (7, 300)).bfloat16().requires_grad_()
    bias = torch.randint(-9, 9, (7,)).bfloat16()
    with EmulatedBfloat16():
        out = linear(x, weight, bias)
        out.sum().backward()
    exact = linear(x.double(), weight.double(), bias.double())
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16())
    ones = torch.ones_like(exact)
    assert torch.equal(x.grad, (ones @ weight.double()).bfloat16())
    summed = ones.flatten(0, -2).T @ x.double().flatten(0, -2)
    assert torch.equal(weight.grad, summed.bfloat16())


def test_other_types_are_left_alone() -> None:
    x, weight = torch.randn(5, 9), torch.randn(9, 7)
    with EmulatedBfloat16():
        assert torch.equal(x @ weight, torch.mm(x, weight))


def test_a_training_under_autocast_learns(work: Path, tmp_path: Path) -> None:
    program = ["python", emulated_bfloat16.__file__, "fairseq-train"]
    autocast = ["--updown-autocast", "bfloat16-always", "--max-update", 12, "--disable-validation"]
    printed = run(*program, *train_arguments(work, tmp_path / "checkpoints", *autocast))
    losses = [float(loss) for loss in re.findall(r"train_inner.* loss=([\d.]+)", printed)]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert (tmp_path / "checkpoints" / "checkpoint_last.pt").exists()


def test_what_a_script_starts_is_emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = []
    monkeypatch.setattr(quality, "run_installed", lambda *call: started.append(call) or (0, 1))
    monkeypatch.setattr(quality, "main", lambda argv: quality.run_installed(argv, tmp_path, {})[0])
    assert emulated_bfloat16.main(["quality", "data", "--out", "x"]) == 0
    ((order, *_),) = started
    assert order[1:] == [emulated_bfloat16.__file__, "data", "--out", "x"]
    with pytest.raises(SystemExit, match="'summarize' is none of quality, mixers"):
        emulated_bfloat16.main(["summarize"])
