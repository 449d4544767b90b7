"""The real fairseq commands on a toy corpus, each once as the installed program."""

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, List, Sequence

import pytest
import torch
from commands import BIN, ENVIRONMENT, PLUGIN, run, run_installed, start, train_arguments

from fairseq_updown.models.updown_transformer.architectures import ARCHITECTURES

pytestmark = pytest.mark.slow


def load(path: Path) -> Any:
    import fairseq_updown  # noqa: F401  registers the classes that a checkpoint may hold

    return torch.load(path)


def losses(log: str) -> List[str]:
    lines = [line for line in log.splitlines() if "| train_inner |" in line]
    return [line.split("loss=")[1].split(", wps")[0] for line in lines]


def test_a_training_killed_in_mid_epoch_resumes_with_the_same_losses(
    work: Path, trained: Path, tmp_path: Path
) -> None:
    save_dir = tmp_path / "killed"
    command = [str(BIN / "fairseq-train"), *map(str, train_arguments(work, save_dir))]
    with open(tmp_path / "log", "w") as log:
        training = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT)
        deadline = time.time() + 200
        while not list(save_dir.glob("checkpoint_*_10.pt")) and time.time() < deadline:
            time.sleep(0.02)
        training.send_signal(signal.SIGKILL)
        training.wait()
    assert not (save_dir / "checkpoint_2_30.pt").exists()
    resumed = run("fairseq-train", *train_arguments(work, save_dir))
    assert "Loaded checkpoint" in resumed
    whole = losses((trained / "train.log").read_text())
    again = losses(resumed)
    assert 5 <= len(again) < len(whole)
    assert again == whole[-len(again) :]
    a, b = load(trained / "checkpoint_last.pt"), load(save_dir / "checkpoint_last.pt")
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])


def test_validate(work: Path, trained: Path) -> None:
    out = run_installed(
        *("fairseq-validate", work / "bin", "--user-dir", PLUGIN, "--cpu", "--task", "translation"),
        *("--path", trained / "checkpoint_last.pt", "--max-tokens", 600),
    )
    assert "valid on 'valid' subset" in out or "| loss" in out


def generate(work: Path, *arguments: Any, program: Any = run) -> List[str]:
    out = program(
        *("fairseq-generate", work / "bin", "--user-dir", PLUGIN, "--cpu"),
        *("--required-batch-size-multiple", 1, "--path", *arguments),
    )
    return out.splitlines()


@pytest.mark.parametrize(
    "flags",
    [
        ["--beam", 4, "--print-alignment", "hard", "--prefix-size", 2],
        ["--beam", 1, "--no-repeat-ngram-size", 2],
        ["--beam", 3, "--nbest", 3, "--sampling", "--sampling-topk", 5],
        ["--beam", 4, "--diverse-beam-groups", 2, "--lenpen", 2],
    ],
    ids=["beam, prefix, alignment", "greedy", "sampling", "diverse beam"],
)
def test_generate(work: Path, trained: Path, flags: Sequence[Any]) -> None:
    lines = generate(work, trained / "checkpoint_last.pt", *flags)
    hypotheses = [line for line in lines if line.startswith("H-")]
    assert len(hypotheses) == 13 * (3 if "--nbest" in flags else 1)
    if "--print-alignment" in flags:
        sources = {x.split("\t")[0][2:]: x.split("\t")[1] for x in lines if x.startswith("S-")}
        for line in (line for line in lines if line.startswith("A-")):
            number, pairs = line[2:].split("\t")
            positions = [int(pair.split("-")[0]) for pair in pairs.split()]
            assert max(positions) < len(sources[number].split())


def test_generate_with_an_ensemble(work: Path, trained: Path) -> None:
    ensemble = f"{trained / 'checkpoint_last.pt'}:{trained / 'checkpoint1.pt'}"
    lines = generate(work, ensemble, "--beam", 3, program=run_installed)
    assert sum(line.startswith("H-") for line in lines) == 13


def test_interactive(work: Path, trained: Path) -> None:
    out = run_installed(
        *("fairseq-interactive", work / "bin", "--user-dir", PLUGIN, "--cpu", "--beam", 3),
        *("--path", trained / "checkpoint_last.pt"),
        input="w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11\n\nw4\n",
    )
    assert [line.split("\t")[0] for line in out.splitlines() if line.startswith("D-")] == [
        "D-0",
        "D-1",
        "D-2",
    ]


def test_a_test_set_is_generated_in_parts(work: Path, trained: Path) -> None:
    def hypotheses(*flags: Any) -> List[str]:
        lines = generate(work, trained / "checkpoint_last.pt", "--batch-size", 2, *flags)
        return sorted(line for line in lines if line.startswith("D-"))

    parts = [
        hypotheses("--distributed-world-size", 3, "--distributed-rank", rank) for rank in range(3)
    ]
    assert all(len(part) > 1 for part in parts)
    assert sorted(line for part in parts for line in part) == hypotheses()


def test_hydra_training_with_a_named_architecture_and_generation(
    work: Path, tmp_path: Path
) -> None:
    (tmp_path / "toy.yaml").write_text(
        f"""
# @package _global_
common: {{user_dir: {PLUGIN}, cpu: true, seed: 3}}
task: {{_name: translation, data: {work / "bin"}, source_lang: src, target_lang: tgt}}
model: {{_name: updown_transformer_tiny, share_all_embeddings: true, updown_pool_layers: '1',
        updown_memory_size: 8, updown_pooling: topk, dropout: 0.2,
        updown_autocast: bfloat16-always}}
criterion: {{_name: label_smoothed_cross_entropy, label_smoothing: 0.1}}
optimizer: {{_name: adam, adam_betas: '(0.9,0.98)'}}
lr_scheduler: {{_name: inverse_sqrt, warmup_updates: 10}}
dataset: {{max_tokens: 500}}
optimization: {{lr: [0.003], max_update: 12}}
checkpoint: {{save_dir: {tmp_path / "hydra"}}}
hydra: {{run: {{dir: {tmp_path / "run"}}}}}
"""
    )
    config = ["--config-dir", tmp_path, "--config-name", "toy"]
    run_installed("fairseq-hydra-train", *config, cwd=tmp_path)
    stored = load(tmp_path / "hydra" / "checkpoint_last.pt")["cfg"]["model"]
    expected = dict(_name="updown_transformer_tiny", encoder_embed_dim=64, updown_block_size=32)
    expected.update(updown_pool_layers="1", updown_pooling="topk", dropout=0.2)
    expected.update(updown_autocast="bfloat16-always")
    assert {name: stored[name] for name in expected} == expected
    lines = generate(work, tmp_path / "hydra" / "checkpoint_last.pt", "--beam", 2)
    assert sum(line.startswith("H-") for line in lines) == 13


def test_two_processes_train_and_score_as_one_with_twice_the_batch(
    work: Path, tmp_path: Path
) -> None:
    """In mixed precision; `tests/models/test_training.py` has it in float64."""
    rouge = ["--task", "summarization", "--eval-rouge", "--eval-rouge-remove-bpe", "none"]
    rouge += ["--eval-rouge-args", '{"beam": 2, "min_len": 5, "max_len_b": 9}']
    rouge += ["--updown-autocast", "bfloat16-always"]
    for updates in (4, 8):  # the second time it goes on
        both = []
        for rank in (0, 1):
            distributed = (
                f"--distributed-world-size 2 --distributed-rank {rank} --distributed-no-spawn "
                f"--distributed-init-method file://{tmp_path}/meet{updates} "
                "--distributed-backend gloo --ddp-backend legacy_ddp --dropout 0 --max-update"
            ).split()
            command = train_arguments(work, tmp_path / "two", *distributed, updates, *rouge)
            both.append(start("fairseq-train", *command, log=tmp_path / f"{rank}-{updates}.log"))
        assert [process.wait() for process in both] == [0, 0], both[1].printed()[-2000:]
    single = train_arguments(work, tmp_path / "one", "--dropout", 0, "--update-freq", 2)
    alone = run("fairseq-train", *single, *rouge, "--max-update", 8)
    scores = [re.findall(r"\| (rouge\w+ [\d.]+)", log) for log in (both[0].printed(), alone)]
    assert scores[0] == scores[1][-len(scores[0]) :]
    assert len(scores[0]) >= 4
    assert any(float(score.split()[1]) > 0 for score in scores[0])
    a, b = (load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("two", "one"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4, msg=key)


IMPORT_ORDERS = {
    "path first": "import_user_module(path); import fairseq_updown",
    "package first": "import fairseq_updown; import_user_module(path)",
    "path twice": "import_user_module(path); import_user_module(path)",
}


@pytest.mark.parametrize("order", list(IMPORT_ORDERS))
def test_plugin_registers_once_in_any_order_of_import(order: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"""
from argparse import Namespace
from fairseq import utils
def import_user_module(path): utils.import_user_module(Namespace(user_dir=path))
path = {str(PLUGIN)!r}
{IMPORT_ORDERS[order]}
import sys
from fairseq.models import ARCH_MODEL_REGISTRY
names = [n for n in ARCH_MODEL_REGISTRY if n.startswith("updown_transformer")]
assert sorted(names) == {sorted(ARCHITECTURES)!r}
assert sum(name.endswith("updown_transformer.model") for name in sys.modules) == 1
""")
    run("python", script, cwd=tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--updown-block-size", 0], "--updown-block-size 0: it must be at least 1"),
        (["--updown-pool-layers", "7"], "there is no encoder layer 7"),
    ],
)
def test_a_bad_flag_stops_training_before_it_starts(
    work: Path, tmp_path: Path, flags: List[Any], message: str
) -> None:
    out = run("fairseq-train", *train_arguments(work, tmp_path, *flags), check=False)
    assert message in out
    assert not list(tmp_path.glob("*.pt"))


def test_a_checkpoint_with_other_flags_is_refused_with_the_remedy(
    work: Path, trained: Path, tmp_path: Path
) -> None:
    flags = ["--updown-pool-layers", "", "--restore-file", trained / "checkpoint_last.pt"]
    out = run("fairseq-train", *train_arguments(work, tmp_path, *flags), check=False)
    assert "--updown-pool-layers" in out
    assert "pools.1" in out
