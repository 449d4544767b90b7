"""Where the time of a training step goes, by kind of operation, by torch's profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from steps import synchronize, warm_runner
from systems import Setup, Work
from torch.profiler import ProfilerActivity, profile, record_function

_ADAM = "Adam"
# What an operation belongs to, by its name or that of one it runs within; the outermost counts.
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear",
                 "mkldnn::_linear_pointwise"),
    "attention": ("aten::_scaled_dot_product_flash_attention",
                  "aten::_scaled_dot_product_flash_attention_backward",
                  "aten::_scaled_dot_product_flash_attention_for_cpu",
                  "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
                  "aten::_scaled_dot_product_efficient_attention",
                  "aten::_scaled_dot_product_efficient_attention_backward"),
    "layer norm": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "dropout": ("_Dropout", "_DropoutBackward", "aten::dropout", "aten::native_dropout",
                "aten::native_dropout_backward"),
    "softmax and loss": ("aten::cross_entropy_loss", "aten::_log_softmax_backward_data",
                         "aten::nll_loss_backward", "aten::_softmax",
                         "aten::_softmax_backward_data"),
    "embeddings": ("aten::embedding", "aten::embedding_dense_backward"),
    "sorts": ("aten::sort", "aten::topk"),
    "copies": ("aten::copy_", "aten::cat", "aten::clone"),
    _ADAM: (_ADAM,),
}  # fmt: skip
OTHER = "all other"
HEAD = ["architecture", "step", *KINDS, OTHER]
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


def shares(name: str, work: Work, setup: Setup) -> dict[str, float]:
    """The seconds of one training step, by kind: the keys of :data:`KINDS` and :data:`OTHER`.

    On a GPU those of its own kernels. The backward pass of torch's own dropout on a CPU is a
    product like any other, and so in :data:`OTHER`.
    """
    runner = warm_runner(name, work, setup)
    runner.run()
    step = runner.optimizer.step

    def named_step() -> None:
        with record_function(_ADAM):
            step()

    runner.optimizer.step = named_step
    on_gpu = setup.device == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as found:
        runner.run()
        synchronize(setup.device)
    seconds: Counter[str] = Counter(dict.fromkeys([*KINDS, OTHER], 0.0))
    for event in found.events() or ():
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        seconds[_kind(event)] += took / 1e6
    return dict(seconds)


def _kind(event: Any) -> str:
    known = [_KIND_OF[own.name] for own in _outwards(event) if own.name in _KIND_OF]
    return known[-1] if known else OTHER


def _outwards(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def cells(seconds: dict[str, float]) -> list[str]:
    """What stands behind the architecture, under :data:`HEAD`: the whole, and the parts."""
    total = sum(seconds.values())
    return [f"{total:.3g} s", *(f"{seconds[kind] / total:.1%}" for kind in (*KINDS, OTHER))]
