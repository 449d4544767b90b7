"""What a step is counted to take, and what follows from it for several GPUs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import scale
import torch
from scale import GPU, Counted, Prediction, StepCounter, predict
from steps import count_step
from systems import Setup, Work

SLOW = GPU(flops=1e6, bandwidth=1e6)


def test_memory_alive_and_time_of_a_chain_are_those_counted_by_hand() -> None:
    x = torch.rand(10, 20, requires_grad=True)
    weight = torch.rand(30, 20)
    counter = StepCounter(SLOW)
    with counter:
        product = x @ weight.t()  # 1,200 bytes; its arguments have 800 and 2,400
        assert counter.live == counter.peak == 1200
        assert counter.device == pytest.approx(2 * 10 * 20 * 30 / 1e6)
        activated = product.relu()  # 1,200 more, kept for backward
        assert counter.live == 2400
        assert counter.device == pytest.approx((12000 + 2400) / 1e6)
        assert activated.view(-1).untyped_storage().nbytes() == 1200
        assert counter.live == 2400
        del product  # relu's result is all that its gradient needs
        assert counter.live == 1200
        activated.add_(1)
        assert counter.live == 1200
        torch.zeros(1000)
        assert (counter.live, counter.peak) == (1200, 5200)
    assert counter.launches.total() == 4


@pytest.mark.parametrize("name", ["transformer", "updown_transformer_arxiv"])
def test_what_is_not_computed_counts_as_if_it_were(name: str) -> None:
    small = {"encoder_layers": 3, "decoder_layers": 1, "encoder_embed_dim": 32,
             "updown_block_size": 64, "updown_memory_size": 100,
             "updown_pool_layers": "2"}  # fmt: skip
    work, setup = Work("train", 1, 300, 20), Setup("cpu", "float32")
    counters = [StepCounter(SLOW), StepCounter(SLOW)]
    counters[1].multiply = lambda func, args, kwargs: func(*args, **kwargs)
    for counter in counters:
        runner = count_step(f"{name} {json.dumps(small)}", work, setup, counter)
    assert all(parameter.grad is None for parameter in runner.system.model.parameters())
    shaped, computed = counters
    assert shaped.launches == computed.launches
    assert shaped.flops == computed.flops
    assert shaped.device == computed.device
    assert shaped.peak == pytest.approx(computed.peak, rel=0.02)  # what kernels hold for themselves


def test_a_gradient_is_none_of_the_memory_alive() -> None:
    work, setup = Work("train", 1, 16, 2), Setup("cpu", "float32")
    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_embed_dim": 512}
    counter = StepCounter(SLOW)
    runner = count_step(f"transformer {json.dumps(small)}", work, setup, counter)
    weights = sum(p.nbytes for p in runner.system.model.parameters())
    assert counter.live < 0.01 * weights


def test_an_expanded_tensor_is_read_once() -> None:
    counter = StepCounter(SLOW)
    with counter:
        torch.rand(1, 50).expand(50, 50).sum()
    assert counter.device == pytest.approx((200 + 200 + 4) / 1e6)


def test_an_update_fills_the_memory_and_counts_every_step() -> None:
    counted = Counted(10**9, 1000, 3000, flops=0, device=0.002, peak=5 * 10**9)
    gpu = GPU()
    one = predict(counted, 1, 100, 72e9, gpu)
    assert one == Prediction(8, 13, 60 * 10**9, one.seconds)  # 8 documents fit, 16 do not
    assert one.seconds == {"device": 13 * 0.016, "optimizer": 3000 * gpu.launch, "network": 0}
    many = predict(counted, 64, 100, 72e9, gpu)
    assert (many.documents, many.steps) == (2, 1)
    assert many.seconds["launches"] == pytest.approx(0.006)
    assert many.seconds["network"] == pytest.approx(2 * 63 / 64 * 2e9 / gpu.between)
    assert many.update == pytest.approx(sum(many.seconds.values()))
    assert predict(counted, 8, 100, 24e9, gpu) is None
    few = predict(replace(counted, optimizer_launches=100), 1, 100, 72e9, gpu)
    assert few.seconds["optimizer"] == 40e9 / gpu.bandwidth


def test_the_optimizer_goes_over_weights_one_by_one() -> None:
    """Adam alone multiplies, adds and divides each; then come copies, norm and scales."""
    launches = [scale.count_optimizer(tensors) for tensors in (10, 20, 40)]
    ten = launches[1] - launches[0]
    assert ten >= 80
    assert launches[2] == launches[1] + 2 * ten


@pytest.mark.slow
def test_a_row_for_each_architecture_and_number_of_gpus(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    small = '{"encoder_layers": 1, "decoder_layers": 1, "encoder_embed_dim": 64}'
    command = ["--length", "300", "--target-length", "8", "--gpus", "2", "4", "--batch", "8",
               "--json", str(tmp_path / "scale.json"), "--architectures", f"transformer {small}",
               f"updown_transformer {small}"]  # fmt: skip
    assert scale.main(command) == 0
    first = capsys.readouterr().out
    rows = [line for line in first.splitlines() if line.startswith("| `")]
    assert len(rows) == 2 + 4
    assert [row.split("|")[2].strip() for row in rows[2:]] == ["2", "4"] * 2
    assert scale.main(command) == 0  # from the file
    assert capsys.readouterr().out == first


def test_an_architecture_that_is_not_known_is_refused() -> None:
    with pytest.raises(SystemExit, match="--architectures nothing is not known"):
        scale.main(["--architectures", "nothing"])
