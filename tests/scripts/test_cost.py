"""The benchmark measures once, resumes, refuses what it cannot do, and counts what torch does."""

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import cost
import fresh_process
import peers
import pytest
import step_profile
import steps
import systems
import torch
from commands import run_installed
from fresh_process import OutOfMemory, in_fresh_process
from steps import Runner, warm_runner
from systems import VOCABULARY, FairseqSystem, Setup, Work, build
from torch import nn

from fairseq_updown.ops import packed_linear

CPU = Setup("cpu", "float32")
STOCK, OURS = "transformer_tiny", "updown_transformer_tiny"
SMALL = [
    *("--architectures", STOCK, OURS, "--lengths", "16", "40", "--dropout-lengths", "16"),
    *("--generation-lengths", "16", "--batches", "2", "--beam", "2", "--steps", "4"),
    *("--target-length", "8", "--sentence-batch", "2", "--sentence-length", "6", "--repeats", "2"),
]


TIMED = ["--sections", "train", "generate", "sentences", "dropout"]


@pytest.fixture(scope="module", autouse=True)
def small_rates() -> Iterator[None]:
    """What the machine reaches is measured, on little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(steps.SHAPES, "cpu", [(256, 256, 256)])
        patch.setitem(steps.BUFFER, "cpu", 2**20)
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, str]:
    """A folder with the JSON and the PNG of a small run of all sections, and what it printed."""
    folder = tmp_path_factory.mktemp("benchmark")
    files = ["--json", str(folder / "out.json"), "--png", str(folder / "new" / "out.png")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cost.main([*SMALL, *TIMED, *files]) == 0
    return folder, printed.getvalue()


def test_the_program_runs_from_any_folder(tmp_path: Path) -> None:
    sizes = ["--sections", "launches", "--launch-lengths", "16"]
    printed = run_installed(Path(sys.executable).name, cost.__file__, *SMALL, *sizes, cwd=tmp_path)
    assert printed.count(f"`{OURS}`") == 1


def test_every_section_has_its_rows_and_figures(measured: Tuple[Path, str]) -> None:
    folder, printed = measured
    rows = json.loads((folder / "out.json").read_text())["rows"]
    works = [row["key"].get("work") for row in rows]
    assert [work and (work["kind"], work["src_len"], work["bsz"]) for work in works] == [
        *(("train", 16, 1), ("train", 40, 1), ("generate", 16, 2)),
        *(("train", 6, 2), ("generate", 6, 2), ("train", 16, 1), None),  # the last: rates
    ]
    assert [work["attention_dropout"] for work in works if work] == [0.0] * 5 + [0.1]
    for row in rows[:-1]:
        for figures in row["figures"].values():
            assert len(figures["seconds"]) == 2
            assert figures["peak_mib"] > figures["added_mib"] > 0
    assert printed.count(f"`{OURS}`") == 6 + 2
    assert "### Limit" in printed
    assert (folder / "new" / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == [".out.json.lock", "new", "out.json"]


def test_second_run_measures_nothing_and_prints_the_same(
    measured: Tuple[Path, str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, printed = measured

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(cost, "measure", refuse)
    monkeypatch.setattr(steps, "measured_rates", refuse)
    before = (folder / "out.json").read_bytes()
    arguments = [*SMALL, *TIMED, "--json", str(folder / "out.json")]
    assert cost.main(arguments) == 0
    assert capsys.readouterr().out.strip() in printed
    assert (folder / "out.json").read_bytes() == before
    with pytest.raises(AssertionError, match="measured again"):
        cost.main([*arguments, "--repeats", "1"])


def test_what_does_not_fit_into_memory_is_said_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inspect(function: Any, arch: str, work: Work, setup: Setup) -> Dict[str, float]:
        if arch == STOCK:
            raise OutOfMemory("the process was killed")
        return {"peak_mib": 200.0, "added_mib": 10.0, "flops": 1.0}

    def allocate(runner: Runner) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(fresh_process, "in_fresh_process", inspect)
    monkeypatch.setattr(
        steps, "measured_rates", lambda *_: {"flops_per_s": 1.0, "bytes_per_s": 1.0}
    )
    train = [*SMALL, "--sections", "train", "--png", str(tmp_path / "out.png")]
    assert cost.main(train) == 0
    printed = capsys.readouterr().out
    assert f"| 16 | 1 | `{STOCK}` | out of memory |  |  | out of memory |  |" in printed
    assert f"`{OURS}`" in printed
    assert printed.count("10 MiB") == 2
    monkeypatch.setattr(Runner, "run", allocate)
    assert cost.main(train) == 0
    assert f"| 16 | 1 | `{OURS}` | out of memory |  |  | 10 MiB |" in capsys.readouterr().out


def test_a_killed_process_and_a_failed_allocation_are_out_of_memory() -> None:
    with pytest.raises(OutOfMemory, match="killed"):
        in_fresh_process(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="ended early"):
        in_fresh_process(os._exit, 1)
    with pytest.raises(OutOfMemory, match="allocate"):
        in_fresh_process(torch.empty, 2**60)
    # the kernel ends that process, not the one that measures
    assert int(in_fresh_process(Path.read_text, Path("/proc/self/oom_score_adj"))) == 1000
    with pytest.raises(RuntimeError, match="negative"):
        in_fresh_process(torch.empty, -1)


def test_peak_memory_grows_with_length() -> None:
    short, long = (
        in_fresh_process(steps.inspect, OURS, Work("train", 1, length, 8), CPU)
        for length in (16, 4096)
    )
    assert long["added_mib"] > short["added_mib"] + 10
    assert long["peak_mib"] > short["peak_mib"] + 10


def options(model: Any) -> Tuple[int, int, int, int]:
    """Width, width between the feed-forward layers, and numbers of layers."""
    layer = model.decoder.layers[0]
    stacks = len(model.encoder.layers), len(model.decoder.layers)
    return layer.fc1.in_features, layer.fc1.out_features, *stacks


def test_operations_of_a_training_step_are_those_of_the_closed_form() -> None:
    work = Work("train", 2, 24, 16, counted=True)
    model = build(STOCK, work, CPU).model
    (d, ffn, encoder, decoder), src, tgt = options(model), work.src_len, work.tgt_len
    linear = encoder * src * (4 * d * d + 2 * d * ffn)
    linear += decoder * (tgt * (4 * d * d + 2 * d * d + 2 * d * ffn) + src * 2 * d * d)
    linear += tgt * d * VOCABULARY
    # Backward: two products for each of forward. The kernel of self-attention also computes its
    # logits once more; fairseq's cross-attention takes no such kernel, since its keys are static.
    self_attention = 2 * d * (encoder * src**2 + decoder * tgt**2)
    cross_attention = 2 * d * decoder * tgt * src
    expected = work.bsz * 2 * (3 * (linear + cross_attention) + 3.5 * self_attention)
    assert steps.inspect(STOCK, work, CPU)["flops"] == expected


def test_a_decoding_step_reads_its_weights_and_caches_and_nothing_else() -> None:
    work = Work("generate", 2, 24, 8, beam=3)
    model = build(STOCK, work, CPU).model
    (d, ffn, _, layers), src, rows = options(model), work.src_len, work.bsz * work.beam
    prefix = work.tgt_len // 2 + 1
    linear = layers * (4 * d * d + 2 * d * d + 2 * d * ffn) + d * VOCABULARY
    found = steps.inspect(STOCK, work, CPU)
    assert found["flops"] == rows * 2 * (linear + layers * 2 * d * (prefix + src))
    weights = sum(parameter.nbytes for parameter in model.decoder.parameters())
    unread = layers * 2 * (d * d + d) * 4  # the memory is projected at the first step alone
    caches = layers * rows * 2 * d * (prefix - 1 + src) * 4
    assert found["bytes_read"] == pytest.approx(weights - unread + caches, rel=1e-3)


@pytest.mark.parametrize(("name", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_packed_weights_count_by_their_own_size(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    if not packed_linear.FORMATS[name].works():
        pytest.skip(f"this torch does not multiply in {name}")
    work = Work("generate", 2, 24, 40, beam=3)
    packed = steps.inspect(systems.with_options(OURS, updown_step_precision=name), work, CPU)
    monkeypatch.setattr(packed_linear.Float32, "first_step", 1000)
    plain = steps.inspect(OURS, work, CPU)
    assert packed["flops"] == plain["flops"]
    decoder = build(OURS, work, CPU).model.decoder
    linear = [m.weight for n, m in decoder.named_modules() if isinstance(m, nn.Linear)
              and not n.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))]  # fmt: skip
    weights = sum(weight.numel() for weight in linear)
    assert packed["bytes_read"] == plain["bytes_read"] - (4 - size) * weights


@pytest.mark.parametrize("exponent", [1.0, 1.9])
def test_fitted_exponent_is_that_of_a_power_law_and_short_lengths_do_not_count(
    exponent: float,
) -> None:
    lengths = [2048, 8192, 16384]
    seconds = [3e-5 * length**exponent for length in lengths]
    figures = {n: {"ours": {"seconds": [s, s, 9 * s]}} for n, s in zip(lengths, seconds)}
    figures |= {128: {"ours": {"seconds": [50.0]}}, 32768: {"ours": {}}}
    rows = [(Work("train", 1, length, 8), figures[length]) for length in sorted(figures)]
    assert cost.exponents(rows) == f"- `ours`: {exponent:.2f} (2048 to 16384)"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_trains_and_generates(dtype: str) -> None:
    for arch in (STOCK, OURS):
        for kind in ("train", "generate"):
            work = Work(kind, 1, 40, 4, beam=2)
            runner = warm_runner(arch, work, Setup("cpu", dtype))
            assert runner.timed()["seconds"] > 0
            found = runner.system.model.decoder.layers[0].fc1.weight
            assert found.dtype == getattr(torch, dtype)
            assert found.isfinite().all()


def test_a_system_of_another_library_is_one_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class Another(FairseqSystem):
        def __init__(self, name: str, work: Work, setup: Setup) -> None:
            super().__init__(STOCK, work, setup)

    monkeypatch.setitem(systems.SYSTEMS, "another", Another)
    row = Work("train", 1, 16, 8)
    runner = warm_runner("another", row, CPU)
    assert isinstance(runner.system, Another)
    assert runner.timed()["seconds"] > 0
    monkeypatch.setattr(cost, "alone", lambda device, look, *of: look(*of))
    assert cost.main([*SMALL, "--sections", "train", "--architectures", STOCK, "another"]) == 0
    assert capsys.readouterr().out.count("`another`") == 3  # two lengths, and the limit of one


@pytest.mark.skipif(peers.VERSION is None, reason="the extra `peers` is not installed")
@pytest.mark.parametrize("name", peers.NAMES)
def test_peers_train_and_generate(name: str) -> None:
    for kind in ("train", "generate"):
        found = warm_runner(name, Work(kind, 1, 600, 8, beam=2), CPU).timed()
        assert found["seconds"] > 0
    model = systems.build(name, Work("train", 1, 600, 8), CPU).model
    base = 49e6  # parameters of fairseq's base architecture at this vocabulary
    assert 0.9 < sum(p.numel() for p in model.parameters()) / base < 1.3


def test_peers_that_are_not_installed_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(peers, "VERSION", None)
    monkeypatch.setattr(cost, "alone", lambda device, look, *of: look(*of))
    sections = ["--sections", "sentences", "launches", "--launch-lengths", "40"]
    assert cost.main([*SMALL, *sections, "--architectures", STOCK, "led"]) == 0
    assert capsys.readouterr().out.count("| `led` | not installed |") == 3


def test_launches_are_those_of_a_gpu_and_options_count(capsys: pytest.CaptureFixture) -> None:
    pooled = systems.with_options(OURS, updown_pooling="tournament")
    sections = ["--sections", "launches", "--launch-lengths", "600"]
    assert cost.main([*SMALL, *sections, "--architectures", STOCK, OURS, pooled]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "`" in line]
    stock, seeded, tournament = (int(row[2].replace(",", "")) for row in rows)
    assert stock < seeded < tournament
    assert rows[1][3] == f"{seeded / stock:.2f}x"
    decoding = [int(row[4].replace(",", "")) for row in rows]
    assert 0 < decoding[1] < decoding[0]
    assert rows[1][5] == f"{decoding[1] / decoding[0]:.2f}x"
    microseconds = 6 * stock
    assert rows[0][-1].startswith(f"{microseconds / 1000:.2f}"[:3])


def test_the_parts_of_a_step_are_of_its_time(capsys: pytest.CaptureFixture) -> None:
    sections = ["--sections", "profile", "--profile-lengths", "300"]
    assert cost.main([*SMALL, *sections]) == 0
    head, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert head.count("|") == 2 + 2 + len(step_profile.KINDS)
    for row, arch in zip(rows, (STOCK, OURS)):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == f"`{arch}`"
        parts = dict(zip([*step_profile.KINDS, step_profile.OTHER], cells[2:]))
        shares = {kind: float(part.rstrip("%")) for kind, part in parts.items()}
        assert sum(shares.values()) == pytest.approx(100, abs=1)
        for kind in ("products", "attention", "layer norm", "dropout", "embeddings", "Adam"):
            assert shares[kind] > 0, kind


MISTAKES: List[Tuple[List[str], str]] = [
    (["--architectures", "nonesuch"], "nonesuch is not known; ours are updown_transformer"),
    (["--longest-source", "24"], "--longest-source 24 needs a GPU"),
    (["--png", "/proc/version/x.png"], "--png /proc/version/x.png cannot be written"),
    (["--json", "/proc"], "--json /proc cannot be written"),
    (["--sections", "generate", "--png", "x.png"], "add it to --sections"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_told_before_anything_runs(arguments: List[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        cost.main([*SMALL, *arguments])


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no GPU here; give --device cpu"):
        cost.main(["--architectures", STOCK, "--device", "cuda"])


def test_numbers_below_one_are_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cost.main(["--batches", "0"])
    assert "--batches: '0' is no whole number from 1" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"kind": "corpus", "rows": []}', "no json", "[]"])
def test_a_foreign_json_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "foreign.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=r"exists and is no .*give another file"):
        cost.main([*SMALL, "--json", str(path)])
    assert path.read_text() == content
