"""Precisions, parallel training, checkpoints, and that something is learned."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import numpy as np
import pytest
import torch
from commands import start
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim import build_optimizer
from omegaconf import OmegaConf
from torch import Tensor
from toy import PAD, build

SOURCE = torch.randint(4, 24, (3, 23), generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(4, 24, (3, 14), generator=torch.Generator().manual_seed(1))


# A tournament on rounded states may choose otherwise, beyond any tolerance; these do not choose.
CONTINUOUS = [
    dict(updown_pooling="mean"),
    dict(updown_pooling="mean", updown_cross_slots=4, encoder_normalize_before=True),
    dict(updown_slots=0, updown_decoder_slots=0, updown_pool_layers=""),
    dict(updown_slots=5, updown_decoder_slots=4, updown_pool_layers=""),
]


def in_parallel(model: Any) -> Tensor:
    return model(SOURCE, None, TARGET)[0]


def step_by_step(model: Any) -> Tensor:
    encoder_out, state = model.encoder(SOURCE), {}
    steps = [
        model.decoder(TARGET[:, : t + 1], encoder_out, incremental_state=state)[0]
        for t in range(TARGET.size(1))
    ]
    return torch.cat(steps, dim=1)


def middle_error(
    compute: Callable[[Any], Tensor], dtype: Optional[torch.dtype], kind: str, **options: Any
) -> float:
    """Of `compute` in `dtype`, or (None) under autocast to bfloat16, against the parallel pass in
    float64 with the same, rounded, weights; the median of five models."""
    errors = []
    for seed in range(5):
        model = build(kind, seed=seed, **options).to(dtype or torch.bfloat16).double()
        exact = in_parallel(model)
        model.to(dtype or torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is None):
            errors.append((compute(model).double() - exact).norm() / exact.norm())
    return float(torch.stack(errors).median())


# `None` is autocast.
in_each_precision = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None], ids=str)


@in_each_precision
@pytest.mark.parametrize("flags", CONTINUOUS, ids=str)
@torch.no_grad()
def test_half_precision_errs_no_more_than_twice_the_stock_transformer(
    flags: Dict[str, Any], dtype: Optional[torch.dtype]
) -> None:
    """flash-attention's tolerance; `None` is autocast. Decoding step by step errs at most
    1.5 times as much as the parallel pass."""
    plain = {k: v for k, v in flags.items() if "updown" not in k}
    stock = middle_error(in_parallel, dtype, "stock", **plain)
    ours = middle_error(in_parallel, dtype, "updown", **flags)
    assert 0 < ours <= 2 * stock
    assert 0 < middle_error(step_by_step, dtype, "updown", **flags) <= 1.5 * ours


def in_precision(dtype: Optional[torch.dtype], **options: Any) -> Any:
    """A model in `dtype`, or (None) that computes under autocast to bfloat16."""
    own = {} if dtype else {"updown_autocast": "bfloat16-always"}
    return build(**options, **own).to(dtype or torch.float32)


@in_each_precision
@torch.no_grad()
def test_future_targets_change_no_bit_in_half_precision(
    configuration: Dict[str, Any], dtype: Optional[torch.dtype]
) -> None:
    model = in_precision(dtype, **configuration)
    before = model(SOURCE, None, TARGET)[0]
    t = 6  # amid a block
    changed = TARGET.clone()
    changed[:, t:] = 4 + (changed[:, t:] - 3) % 20
    after = model(SOURCE, None, changed)[0]
    assert torch.equal(after[:, :t], before[:, :t])
    assert not torch.equal(after[:, t:], before[:, t:])


@in_each_precision
@pytest.mark.parametrize("flags", CONTINUOUS, ids=str)
@torch.no_grad()
def test_padding_moves_a_sample_in_half_precision_by_less_than_twice_its_error(
    flags: Dict[str, Any], dtype: Optional[torch.dtype]
) -> None:
    model, exact = in_precision(dtype, **flags), build(**flags)
    padded = SOURCE.clone()
    padded[1, :9] = PAD
    batch = model(padded, None, TARGET)[0][1]
    alone, expected = (
        each(SOURCE[1:2, 9:], None, TARGET[1:2])[0][0].double() for each in (model, exact)
    )
    assert (batch.double() - alone).norm() <= 2 * (alone - expected).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains_with_finite_gradients(dtype: torch.dtype) -> None:
    model = build().to(dtype).train()
    model(SOURCE, None, TARGET)[0].float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


DDP_SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from toy import build

rank, meeting, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
model = build(perturb=False).train()
if kind == "replicated":
    replica = DistributedDataParallel(model)
else:
    mesh = init_device_mesh("cpu", (2,))
    for module in [*model.encoder.layers, *model.decoder.layers, model]:
        replica = fully_shard(module, mesh=mesh)
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
        grad = p.grad.full_tensor() if kind == "sharded" else p.grad
        torch.testing.assert_close(grad, q.grad, rtol=0, atol=1e-9, msg=name)
print("equal")
"""


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_gloo_processes_agree_with_one_without_searching_for_unused_parameters(
    kind: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(DDP_SCRIPT)
    both = [
        start("python", script, rank, tmp_path / "meeting", kind, log=tmp_path / f"{rank}.log")
        for rank in (0, 1)
    ]
    for process in both:
        process.wait()
        assert process.printed().strip().endswith("equal"), process.printed()[-2000:]


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
    with pytest.raises(ValueError, match=r"no complete fairseq checkpoint.* zip archive"):
        load_checkpoint_to_cpu(str(corrupt))


@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "nag", "sgd", "adagrad", "adamax"])
def test_what_fairseq_stores_beside_the_weights_loads(optimizer: str, tmp_path: Path) -> None:
    parser = options.get_training_parser()
    flags = ["data", "--task", "translation", "--arch", "updown_transformer_tiny"]
    args = options.parse_args_and_arch(parser, [*flags, "--optimizer", optimizer, "--lr", "0.1"])
    cfg = convert_namespace_to_omegaconf(args)
    parameter = torch.nn.Parameter(torch.ones(3, 4))
    built = build_optimizer(cfg.optimizer, [parameter])
    parameter.sum().backward()
    built.step()
    state = {
        "args": Namespace(lr=[0.1]),
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "last_optimizer_state": built.state_dict(),
        "extra_state": {"best": np.float64(3.5), "n": np.int64(4), "order": np.arange(3)},
    }
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt")
    assert loaded["args"].lr == [0.1]
    assert loaded["extra_state"]["best"] == 3.5
    assert loaded["cfg"]["model"]["updown_block_size"] == 32
    built.load_state_dict(loaded["last_optimizer_state"])
