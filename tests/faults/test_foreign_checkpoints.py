"""Files that are no checkpoints are refused, without torch's advice to load them unsafely."""

import io
import os
import pickle
import sys
import tarfile
import traceback
from pathlib import Path
from typing import Any, List

import pytest
import torch
from commands import PLUGIN, train_arguments
from fairseq.distributed.utils import _put_tensors_in_obj, _split_tensors_from_obj

from fairseq_updown.cli import highlight, summarize

pytestmark = pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")


def test_what_fairseq_sends_from_one_process_to_others_is_loaded() -> None:
    """A checkpoint, under `--ddp-backend fully_sharded`: its tensors go by themselves."""
    buffer, tensors = io.BytesIO(), []
    sent = _split_tensors_from_obj({"model": {"weight": torch.ones(2)}}, tensors)
    torch.save(sent, buffer)
    buffer.seek(0)
    received = torch.load(buffer)
    assert _put_tensors_in_obj(received, tensors)["model"]["weight"].tolist() == [1, 1]


class Command:
    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps({"protocol_version": 1000})
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


FILES = {
    "tar": write_tar,
    "script": lambda path: torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(2)).save(path),
    "pickle": lambda path: torch.save({"model": Command()}, path),
    "old pickle": lambda path: torch.save(
        {"model": Command()}, path, _use_new_zipfile_serialization=False
    ),
    "tensors": lambda path: torch.save({"model": {"weight": torch.zeros(2)}}, path),
    "empty": lambda path: path.touch(),
    "zeros": lambda path: path.write_bytes(bytes(999)),
    "text": lambda path: path.write_text("# some text\n"),
}


def run_train(work: Path, path: Path) -> None:
    run_main("train", train_arguments(work, path.parent / "never", "--restore-file", path))


def run_generate(work: Path, path: Path) -> None:
    run_main("generate", [work / "bin", "--user-dir", PLUGIN, "--cpu", "--path", path])


def run_interactive(work: Path, path: Path) -> None:
    run_main("interactive", [work / "bin", "--user-dir", PLUGIN, "--cpu", "--path", path])


def run_main(name: str, arguments: List[Any]) -> None:
    from importlib import import_module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"fairseq-{name}", *map(str, arguments)])
        import_module(f"fairseq_cli.{name}").cli_main()


def run_summarize(work: Path, path: Path) -> None:
    summarize.main(["--checkpoint", str(path), "--data", str(work / "bin"), "--device", "cpu"])


def run_highlight(work: Path, path: Path) -> None:
    flags = ["--checkpoint", str(path), "--data", str(work / "bin"), "--out", "page.html"]
    highlight.main([str(work / "test.src"), *flags, "--device", "cpu"])


PROGRAMS = [run_train, run_generate, run_interactive, run_summarize, run_highlight]
# All programs read files by the same few lines: each kind with one of fairseq's and one of ours.
PAIRS = [(kind, program) for kind in FILES for program in (run_generate, run_summarize)]
PAIRS += [("tar", program) for program in PROGRAMS if ("tar", program) not in PAIRS]


@pytest.mark.parametrize(("kind", "program"), PAIRS)
def test_a_file_that_is_no_checkpoint(
    program: Any, kind: str, work: Path, tmp_path: Path, monkeypatch: Any, capfd: Any, caplog: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    FILES[kind](path)
    with pytest.raises((ValueError, SystemExit)) as error:
        program(work, path)
    said = (
        "".join(traceback.format_exception(error.value)) + caplog.text + "".join(capfd.readouterr())
    )
    assert "a.pt is no complete fairseq checkpoint, or holds objects that torch's safe " in said
    assert "give a file that fairseq-train saved" in said
    assert "weights_only" not in said
    assert ("posix.system" in said) is ("pickle" in kind)
    assert not Path("PWNED").exists()
