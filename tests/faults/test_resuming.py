"""An interrupted training goes on as if nothing had happened, in any epoch, from any whole file."""

import logging
import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import pytest
import torch
from commands import train_arguments
from fairseq import checkpoint_utils
from fairseq_cli.train import should_stop_early

from fairseq_updown.checkpoints import is_torn, replace_torn
from fairseq_updown.tasks.summarization import SummarizationConfig, SummarizationTask

# --------------------------------------------------------------------------------------- batches


def make_task(work: Path) -> SummarizationTask:
    cfg = SummarizationConfig(data=str(work / "bin"), source_lang="src", target_lang="tgt")
    cfg.dataset_impl, cfg.train_subset, cfg.required_seq_len_multiple = None, "train", 1
    return SummarizationTask.setup_task(cfg)


def iterator(task: SummarizationTask, epoch: int, split: str = "train", **options: Any) -> Any:
    """As fairseq's trainer makes one."""
    limits: Dict[str, Any] = dict(max_tokens=900, max_positions=(1024, 1024))
    return task.get_batch_iterator(task.dataset(split), **limits, seed=1, epoch=epoch, **options)


def train(task: SummarizationTask, found: Any) -> Dict[int, List]:
    """The samples of each batch of each epoch, to the end of the third."""
    seen: Dict[int, List] = {}
    while found.next_epoch_idx <= 3:
        epoch = found.next_epoch_idx
        for batch in found.next_epoch_itr():
            seen.setdefault(epoch, []).append(batch["id"].tolist())
        found = iterator(task, found.next_epoch_idx)
    return seen


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_every_epoch_goes_on_with_the_batches_of_an_unbroken_training(
    work: Path, epoch: int
) -> None:
    task = make_task(work)
    task.load_dataset("train")
    whole = train(task, iterator(task, 1))
    assert sorted(number for batch in whole[epoch] for number in batch) == list(range(240))
    assert whole[1] != whole[2]

    task = make_task(work)
    task.load_dataset("train")
    first, seen = iterator(task, 1), {}
    for earlier in range(1, epoch + 1):
        running = first if earlier == 1 else iterator(task, earlier)
        batches = running.next_epoch_itr()
        seen[earlier] = [next(batches)["id"].tolist() for _ in range(3)]
        if earlier < epoch:
            seen[earlier] += [batch["id"].tolist() for batch in batches]
    state = running.state_dict()

    task = make_task(work)  # a new process
    task.load_dataset("train", epoch=state["epoch"])
    resumed = iterator(task, state["epoch"])
    resumed.load_state_dict(state)
    for later, batches in train(task, resumed).items():
        seen[later] = seen.get(later, []) + batches
    assert seen == whole


def test_no_worker_of_an_epoch_stays(work: Path) -> None:
    task = make_task(work)
    task.load_dataset("train")
    before = len(multiprocessing.active_children())
    for epoch in (1, 2):
        batches = iterator(task, epoch, num_workers=1, data_buffer_size=2).next_epoch_itr()
        assert sum(len(batch["id"]) for batch in batches) == 240
        assert len(multiprocessing.active_children()) == before


def test_validation_keeps_its_batches(work: Path) -> None:
    task = make_task(work)
    task.load_dataset("valid")
    assert iterator(task, 1, "valid") is iterator(task, 1, "valid")


# ------------------------------------------------------------------------------ torn checkpoints


def save(path: Path, updates: int) -> None:
    torch.save({"optimizer_history": [{"num_updates": updates}], "model": torch.ones(999)}, path)


def updates(path: Path) -> int:
    return torch.load(path)["optimizer_history"][0]["num_updates"]


TEARS = {
    "cut": lambda content: content[:-30],
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros within": lambda content: content[:900] + bytes(2000) + content[2900:],
    "zeros": lambda content: bytes(len(content)),
    "written again behind a part": lambda content: content[:500] + content,
}


@pytest.mark.parametrize("tear", list(TEARS))
def test_a_torn_last_checkpoint_gives_way_to_the_newest_whole_one(
    tmp_path: Path, tear: str, caplog: pytest.LogCaptureFixture
) -> None:
    last = tmp_path / "checkpoint_last.pt"
    replace_torn(last)
    assert not last.exists()
    for name, number in (("_1_30", 30), ("_2_40", 40), ("2", 35), ("_best", 30), (".notes", 99)):
        save(tmp_path / f"checkpoint{name}.pt", number)
    save(last, 45)
    whole = last.read_bytes()
    replace_torn(last)
    assert last.read_bytes() == whole
    assert not caplog.records
    last.write_bytes(TEARS[tear](whole))
    newest = tmp_path / "checkpoint_2_45.pt"
    newest.write_bytes(TEARS[tear](whole))  # torn too
    replace_torn(last)
    assert updates(last) == 40
    assert "going on from checkpoint_2_40.pt, at 40 updates" in caplog.text
    assert updates(tmp_path / "checkpoint_2_40.pt") == 40
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_without_a_whole_one_the_torn_one_is_set_aside(tmp_path: Path, caplog: Any) -> None:
    last = tmp_path / "checkpoint_last.pt"
    last.write_bytes(b"PK\3\4torn")
    (tmp_path / "checkpoint_1_5.pt").write_bytes(b"PK")
    replace_torn(last)
    assert not last.exists()
    assert (tmp_path / "checkpoint_last.pt.torn").read_bytes() == b"PK\3\4torn"
    assert "no checkpoint beside it is whole" in caplog.text


def test_files_that_torch_wrote_before_it_had_archives_are_left_alone(tmp_path: Path) -> None:
    last = tmp_path / "checkpoint_last.pt"
    torch.save({"x": 1}, last, _use_new_zipfile_serialization=False)
    assert not is_torn(last)


def test_fairseq_asks_before_it_loads(tmp_path: Path) -> None:
    """The plugin's import puts the check before fairseq's own loading, whatever the task."""
    save(tmp_path / "checkpoint_1_5.pt", 5)
    (tmp_path / "checkpoint_last.pt").write_bytes(b"PK")

    checked = []

    class Task:
        def check_best_metric(self, *given: Any) -> None:
            checked.append(given)

    class Trainer:
        checkpoint_suffix, task = "", Task()
        cfg = SimpleNamespace(dataset=SimpleNamespace(disable_validation=False))

        def load_checkpoint(self, path: str, *args: Any, **kwargs: Any) -> None:
            raise InterruptedError(updates(Path(path)))

    cfg = SimpleNamespace(
        restore_file="checkpoint_last.pt", save_dir=str(tmp_path), optimizer_overrides="{}",
        finetune_from_model=None, reset_optimizer=False, reset_lr_scheduler=False,
        reset_meters=False, reset_dataloader=False, best_checkpoint_metric="loss",
        maximize_best_checkpoint_metric=False,
    )  # fmt: skip
    # what a training before it in this process had
    checkpoint_utils.save_checkpoint.best = should_stop_early.num_runs = 1
    with pytest.raises(InterruptedError, match="5"):
        checkpoint_utils.load_checkpoint(cfg, Trainer())
    assert checked == [("loss", False)]
    assert not hasattr(checkpoint_utils.save_checkpoint, "best")
    assert not hasattr(should_stop_early, "num_runs")


# ----------------------------------------------------------------------------------- real kills


def train_in_another_process(arguments: List[Any], log: Path) -> Any:
    """A fork of this process: nothing has to be imported again."""

    def main() -> None:
        import sys

        from fairseq_cli.train import cli_main

        logging.getLogger().handlers[:] = [logging.FileHandler(log)]
        sys.argv = ["fairseq-train", *map(str, arguments)]
        cli_main()

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process


@pytest.mark.slow
def test_kills_in_three_epochs_change_no_weight(work: Path, tmp_path: Path) -> None:
    def arguments(folder: Path) -> List[Any]:
        return train_arguments(
            work, folder, *("--task", "summarization", "--disable-validation"),
            *("--max-tokens", 1500, "--save-interval-updates", 1, "--max-update", 18),
        )  # fmt: skip

    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    process = train_in_another_process(arguments(unbroken), tmp_path / "unbroken.log")
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "unbroken.log").read_text()[-2000:]
    epochs = {int(path.stem.split("_")[1]) for path in unbroken.glob("checkpoint_*_*.pt")}
    assert epochs == {1, 2, 3}
    for epoch in (1, 2, 3):
        process = train_in_another_process(arguments(broken), tmp_path / f"{epoch}.log")
        deadline = time.monotonic() + 60
        while len(list(broken.glob(f"checkpoint_{epoch}_*.pt"))) < 1:
            assert process.is_alive(), (tmp_path / f"{epoch}.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.join()
        if epoch == 2:
            last = broken / "checkpoint_last.pt"
            last.write_bytes(last.read_bytes()[:-99])
    process = train_in_another_process(arguments(broken), tmp_path / "end.log")
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "end.log").read_text()[-2000:]
    assert "going on from checkpoint_2_" in (tmp_path / "3.log").read_text()
    ours, expected = (
        torch.load(folder / "checkpoint_3_18.pt")["model"] for folder in (broken, unbroken)
    )
    assert all(ours[name].equal(value) for name, value in expected.items())
