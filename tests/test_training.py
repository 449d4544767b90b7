"""Precisions, parallel training, checkpoints, and that something is learned."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from conftest import CONFIGURATIONS, build

SOURCE = torch.randint(4, 24, (3, 23), generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(4, 24, (3, 14), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_bf16_errs_no_more_than_twice_the_stock_transformer(name: str) -> None:
    """The error of each against its own float64 self (flash-attention's tolerance)."""

    def error(model: Any) -> float:
        # Rounded weights in both, so that only the arithmetic differs.
        model.bfloat16().double()
        exact = model(SOURCE, None, TARGET)[0]
        rounded = model.bfloat16()(SOURCE, None, TARGET)[0]
        assert rounded.isfinite().all()
        return float((rounded.double() - exact).pow(2).mean().sqrt())

    options = CONFIGURATIONS[name]
    stock = {k: v for k, v in options.items() if "updown" not in k}
    with torch.no_grad():
        errors = [error(build(seed=seed, **options)) for seed in range(3)]
        references = [error(build("stock", seed=seed, **stock)) for seed in range(3)]
    assert sorted(errors)[1] <= 2 * sorted(references)[1] + 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains_with_finite_gradients(dtype: torch.dtype) -> None:
    model = build().to(dtype).train()
    model(SOURCE, None, TARGET)[0].float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_autocast_trains_with_finite_gradients() -> None:
    model = build().float().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(SOURCE, None, TARGET)[0].float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        encoder_out, state = model.eval().encoder(SOURCE), {}
        for t in range(12):
            model.decoder(TARGET[:, : t + 1], encoder_out, incremental_state=state)


DDP_SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from conftest import build

rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=2)
model = build(perturb=False).train()
replica = DistributedDataParallel(model)
single = build(perturb=False).train()
for step, (src_len, tgt_len) in enumerate([(23, 14), (3, 2), (9, 13), (30, 3)]):
    batches = []
    for r in (0, 1):
        g = torch.Generator().manual_seed(10 * step + r)
        length = src_len if r == 0 else 4  # one process compresses, the other has only sentences
        source = torch.randint(4, 24, (2, length), generator=g)
        batches.append((source, None, torch.randint(4, 24, (2, tgt_len), generator=g)))
    replica.zero_grad()
    replica(*batches[rank])[0].square().mean().backward()
    single.zero_grad()
    for batch in batches:
        (single(*batch)[0].square().mean() / 2).backward()
    for (name, p), q in zip(model.named_parameters(), single.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-9, msg=name)
print("equal")
"""


def test_two_gloo_processes_agree_with_one_without_searching_for_unused_parameters() -> None:
    port = 20000 + os.getpid() % 20000
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", DDP_SCRIPT, str(rank), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    for output in outputs:
        assert output.strip().endswith("equal"), output[-2000:]


def test_a_checkpoint_of_the_stock_transformer_loads_and_its_weights_count() -> None:
    stock, model = build("stock", seed=3), build()
    model.load_state_dict(stock.state_dict())
    ours = model.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in stock.state_dict().items())


def test_weights_of_other_flags_are_refused_with_the_remedy() -> None:
    weights = build(updown_pool_layers="1").state_dict()
    with pytest.raises(ValueError, match=r"pools\.1.*--updown-pool-layers"):
        build(updown_pool_layers="2").load_state_dict(weights)


class Hostile:
    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))

    def __init__(self, path: str):
        self.path = path


def test_a_hostile_or_corrupt_checkpoint_runs_no_code(tmp_path: Path) -> None:
    from fairseq.checkpoint_utils import load_checkpoint_to_cpu

    hostile, corrupt, trap = tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "trap"
    torch.save({"args": Namespace(x=1), "model": Hostile(str(trap))}, hostile)
    with pytest.raises(Exception, match="mkdir"):
        load_checkpoint_to_cpu(str(hostile))
    assert not trap.exists()
    corrupt.write_bytes(hostile.read_bytes()[:200])
    with pytest.raises(RuntimeError, match="zip archive"):
        load_checkpoint_to_cpu(str(corrupt))


@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "nag", "sgd", "adagrad", "adamax"])
def test_optimizer_state_loads(optimizer: str, tmp_path: Path) -> None:
    import numpy as np
    from fairseq.optim import build_optimizer
    from omegaconf import OmegaConf

    from fairseq.optim import OPTIMIZER_REGISTRY  # isort: skip

    cls = OPTIMIZER_REGISTRY[optimizer]
    dataclass = getattr(cls, "__dataclass", None)
    if dataclass is not None:
        cfg = OmegaConf.structured(dataclass())
        OmegaConf.set_struct(cfg, False)
        cfg.lr = [0.1]
        cfg._name = optimizer
        for name, default in (("tpu", False), ("use_old_adam", False), ("fp16_adam_stats", False)):
            if name in cfg:
                cfg[name] = default
    else:
        from argparse import ArgumentParser

        parser = ArgumentParser()
        cls.add_args(parser)
        cfg = parser.parse_args([])
        cfg.lr, cfg.optimizer = [0.1], optimizer
    parameter = torch.nn.Parameter(torch.ones(3, 4))
    built = build_optimizer(cfg, [parameter])
    parameter.sum().backward()
    built.step()
    state = {
        "optimizer": built.state_dict(),
        "args": Namespace(lr=[0.1]),
        "best": np.float64(3.5),
        "array": np.arange(3),
        "history": {"loss": np.float32(1.5), "flag": np.bool_(True), "n": np.int64(4)},
    }
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt")
    assert loaded["best"] == 3.5
    assert loaded["args"].lr == [0.1]
    built.load_state_dict(loaded["optimizer"])


# A recall task: key-value pairs are scattered over a source several blocks long, between filler;
# the decoder is given the keys and must name their values.

KEYS, VALUES, LENGTH, PAIRS, BLOCK = 6, 8, 48, 4, 8
FILLER = 4 + KEYS + VALUES


def recall_batch(generator: torch.Generator, bsz: int) -> Dict[str, torch.Tensor]:
    source = torch.full((bsz, LENGTH), FILLER)
    keys = torch.rand(bsz, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = torch.randint(VALUES, (bsz, PAIRS), generator=generator)
    places = torch.rand(bsz, LENGTH // 2, generator=generator).argsort(1)[:, :PAIRS].sort(1).values
    # A pair straddles two places of which only the *block of the question* holds neither.
    source.scatter_(1, 2 * places, keys + 4)
    source.scatter_(1, 2 * places + 1, values + 4 + KEYS)
    order = torch.rand(bsz, PAIRS, generator=generator).argsort(1)
    asked, answers = keys.gather(1, order), values.gather(1, order)
    return {"source": source, "asked": asked + 4, "answers": answers + 4 + KEYS}
