"""Generated documents are all different; the memory of a command is that of all its processes."""

import json
import sys
from pathlib import Path

import prepare
import pytest

MIB = 2**20
HOLD = "import time; held = bytearray(b'x') * ({} * 2**20); time.sleep(1.5)"


def test_documents_have_their_words_and_are_the_same_each_time() -> None:
    found = [json.loads(line) for line in prepare.documents(20, 50)]
    assert {len(pair["source"].split()) for pair in found} == {50}
    assert len({pair["source"] for pair in found}) == 20
    words = [word for pair in found for word in pair["source"].split()]
    assert len(set(words)) < 0.7 * len(words)  # some are common
    assert [json.loads(line) for line in prepare.documents(20, 50)] == found


def test_the_memory_of_a_child_counts_too() -> None:
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD.format(150)!r}])"
    _, alone = prepare.measure([sys.executable, "-c", HOLD.format(1)])
    _, both = prepare.measure([sys.executable, "-c", child])
    assert 150 * MIB < both - alone + MIB < 190 * MIB


def test_a_failing_command_is_an_error_with_its_words() -> None:
    with pytest.raises(prepare.UserError, match="no room"):
        prepare.measure([sys.executable, "-c", "raise SystemExit('no room')"])


@pytest.mark.slow
def test_a_row_for_each_number_of_workers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = ["--documents", "1900", "--words", "80", "--workers", "1", "2"]
    assert prepare.main([*sizes, "--work", str(tmp_path)]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert [row[2].strip() for row in rows[2:]] == ["1,900", "1,900"]
    assert not list(tmp_path.iterdir())
