"""Files and folders that are written whole or not at all, and text in lines."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

from filelock import FileLock, Timeout

from ..errors import UserError

REPORT = "report.json"


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file to read its bytes; a pipe would keep one waiting, and a device has no end.

    Raises:
        OSError: it is not there, cannot be read, or is no regular file.
    """
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):  # of a directory, open() says what it is
        raise OSError(errno.EINVAL, "A pipe or a device, not a regular file", str(path))
    return open(path, "rb")


# What makes UTF-8 of content that begins so, or has NULs; what makes it of all else may be latin1.
_CONVERTERS = {
    b"\xff\xfe": "iconv -f utf-16 -t utf-8",
    b"\xfe\xff": "iconv -f utf-16 -t utf-8",
    b"\x1f\x8b": "gunzip",
    b"%PDF": "pdftotext",
}


def from_utf8(content: bytes) -> str:
    """UTF-8 text, without a byte order mark.

    Raises:
        UserError: it is not UTF-8, or has the NULs of UTF-16.
    """
    try:
        text = content.decode("utf-8-sig")
        if 4 * text.count("\0") <= len(text):
            return text
        place, tool = content.index(b"\0"), "iconv -f utf-16 -t utf-8"
    except UnicodeDecodeError as error:
        place, tool = error.start, "iconv -f latin1 -t utf-8"
    tool = next((_CONVERTERS[x] for x in _CONVERTERS if content.startswith(x)), tool)
    raise UserError(
        f"not UTF-8: byte 0x{content[place]:02x} at position {place:,}: convert it, for example "
        f"with {tool}"
    )


def decoded(content: bytes, shown: str) -> str:
    """UTF-8 text, with newlines as line ends, whatever system wrote it.

    Args:
        shown: what an error calls it.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return from_utf8(content).replace("\r\n", "\n").replace("\r", "\n")
    except UserError as error:
        raise UserError(f"{shown}: {error}") from error


def read_text(path: str | Path, shown: str) -> str:
    """The text of a UTF-8 file, with newlines as line ends.

    Args:
        shown: what an error calls it.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{shown}: {error.strerror}: check the path") from error
    return decoded(content, shown)


def text_lines(path: str | Path, shown: str) -> list[str]:
    """The lines of :func:`read_text`; only a newline ends one."""
    lines = read_text(path, shown).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def same_file(path: str | Path, other: str | Path) -> bool:
    """Whether both names lead to one file, which need not be there; links may go in a circle."""
    return os.path.realpath(path) == os.path.realpath(other)


def to_json(value: Any) -> str:
    """The JSON text all scripts write: indented, plain UTF-8, newline at the end.

    What is no character, as in file names that are not UTF-8, is escaped as JSON has it.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write one text a line; for files inside an :func:`atomic_directory`."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file that :func:`write_lines` wrote; only a newline ends one."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``content`` so that ``path``, or what it is a link to, holds either its old content or
    all of the new; its permissions stay."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{crc32(os.fsencode(path.name)):08x}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        if path.exists():
            shutil.copymode(path, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(option: str, path: Path, read: Mapping[str, str | Path] | None = None) -> None:
    """Refuses, before any work, an output file that could not be written at its end.

    Args:
        read: files that must not be replaced, by what an error calls them.

    Raises:
        UserError: naming the option and the path.
    """
    for name, other in (read or {}).items():
        if same_file(other, path):
            raise UserError(f"{option} {path} would replace {name}: give another file")
    real = Path(os.path.realpath(path))
    folder = next(filter(os.path.lexists, real.parents), real)
    irregular = os.path.exists(real) and not os.path.isfile(real)
    if irregular or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: give a file in a folder of yours")


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that clean-up runs as it does for Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` that takes its place if the block succeeds.

    On any exception, Ctrl-C or SIGTERM the sibling is removed and ``path`` stays as it was; what a
    killed process left is removed by the next. What was at ``path`` is replaced: call
    :func:`already_built` first.

    Raises:
        UserError: another process is at it, or it is a mount point, which cannot be replaced.
    """
    if os.path.ismount(path):
        raise UserError(f"{path} is a mount point and cannot be replaced: give a folder in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced, lock = (path.with_name(f".{path.name}.{x}") for x in _SIBLINGS)
    try:
        with sigterm_interrupts(), FileLock(lock, blocking=False):
            try:
                _clear_up(path, partial, replaced)
                partial.mkdir()
                yield partial
                if path.exists():
                    path.rename(replaced)
                partial.rename(path)
            finally:
                _clear_up(path, partial, replaced)
                lock.unlink(missing_ok=True)  # while it is held: nobody waits for it
    except Timeout as error:
        raise UserError(
            f"{path} is being written by another process: wait for it, or give another directory"
        ) from error


_SIBLINGS = ("partial", "replaced", "lock")


def _clear_up(path: Path, partial: Path, replaced: Path) -> None:
    """Removes what an unfinished :func:`atomic_directory` left; puts back what it had moved."""
    if replaced.exists() and not path.exists():
        replaced.rename(path)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


# What a corpus consists of; see `cli/corpus_options.py`.
_BUILT = {"raw", "spm", REPORT}


def already_built(path: Path, kind: str, options: dict[str, Any], overwrite: bool) -> bool:
    """Whether ``path`` already holds a complete output of this kind, made with these options.

    Args:
        path: the output directory; its ``report.json`` tells what it holds
        kind: value that ``report.json`` must have under "kind" to count as ours
        options: values that ``report.json`` must have under "options"
        overwrite: build again whatever the options were

    Raises:
        UserError: ``path`` is, or holds, something that must not be replaced
    """
    if not os.path.lexists(path):
        return False
    if not path.is_dir():
        raise UserError(f"--out {path} is not a directory: give another path")
    if not any(path.iterdir()):
        return False
    try:
        report = json.loads((path / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        report = None
    if not isinstance(report, dict) or report.get("kind") != kind:
        raise UserError(
            f"--out {path} exists and is no {kind}: it is left alone (even with --overwrite); "
            "give a new or empty directory"
        )
    if overwrite:
        others = sorted({entry.name for entry in path.iterdir()} - _BUILT)
        if others:
            raise UserError(
                f"--out {path} also holds {others[0]}, which is none of this {kind}'s and would be "
                "lost with --overwrite: move it away, or give another directory"
            )
        return False
    made_with = report.get("options")
    if made_with != options:
        was = made_with if isinstance(made_with, dict) else {}
        differ = [name for name in {**was, **options} if was.get(name) != options.get(name)]
        listed = ", ".join(f"{name} {was.get(name)}, now {options.get(name)}" for name in differ)
        raise UserError(
            f"--out {path} holds a {kind} made with other options ({listed}): give another "
            "directory, or --overwrite to replace it"
        )
    return True
