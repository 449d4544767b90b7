"""summarize.py with a small trained checkpoint: what it says, and what it says of bad input."""

import gzip
import json
import math
import os
import pickle
import re
import shlex
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Tuple

import pytest
import torch
from commands import ENVIRONMENT, PLUGIN, run, start
from hypothesis import given
from hypothesis import strategies as st
from stored import SMALL, parse, save_checkpoint
from tiny_summarizer import FLAGS, LIMIT, SEARCH, Toy

from fairseq_updown.cli import summarize
from fairseq_updown.data.parallel_text import train_sentencepiece
from fairseq_updown.errors import UserError
from fairseq_updown.inference.loading import use_step_precision
from fairseq_updown.inference.summarizer import Summarizer
from fairseq_updown.inference.windows import window_ends


@pytest.fixture
def cli(toy: Toy, tmp_path: Path, capsys: Any, monkeypatch: Any) -> Any:
    """Runs summarize.py in an empty folder; returns status, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any, stdin: bytes = b"") -> Tuple[int, str, str]:
        (tmp_path / "stdin").write_bytes(stdin)
        command = ["--checkpoint", toy.checkpoint, *FLAGS, *arguments]
        with (tmp_path / "stdin").open() as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            status = summarize.main([str(argument) for argument in command])
        return (status, *capsys.readouterr())

    return call


# --------------------------------------------------------------------------- without a checkpoint


@given(
    pieces=st.lists(st.sampled_from(["▁A", "▁a", "b", ".", "?", "▁", "。"]), max_size=60),
    limit=st.integers(1, 20),
)
def test_windows_cover_the_document_within_the_limit(pieces: List[str], limit: int) -> None:
    ends = window_ends(pieces, limit)
    assert ends[-1] == len(pieces)
    assert all(0 < end - start <= limit for start, end in zip([0, *ends], ends) if pieces)


@pytest.mark.parametrize(
    ("pieces", "limit", "ends"),
    [
        (["▁A", "b", ".", "▁C", "d", "▁e", "."], 5, [3, 7]),  # not the middle: the sentence
        (["▁A", "b", ".", "▁c", "d", "▁e", "."], 5, [3, 7]),  # a word, the nearest to the middle
        (["▁A", "b", "?", "”", "▁", "C", "d", "e"], 6, [4, 8]),
        (["▁", "一", "二", "。", "三", "四", "。"], 5, [4, 7]),
        (["▁A", *"bcdefghij"], 4, [4, 7, 10]),  # one word: even windows
    ],
)
def test_a_window_ends_after_a_sentence_else_after_a_word(
    pieces: List[str], limit: int, ends: List[int]
) -> None:
    assert window_ends(pieces, limit) == ends


@pytest.mark.parametrize("options", [{}, {"max_len_a": 0.4, "max_len_b": 2}])
def test_order_and_batching_change_nothing(toy: Toy, options: Dict[str, Any]) -> None:
    summarizer = toy.load(**options)
    documents = [summarizer.truncate(summarizer.encode(text)) for text in toy.documents]
    alone = [summarizer.generate([document])[0] for document in documents]
    assert len({summary.text for summary in alone}) > len(documents) // 2, "all the same"
    for max_tokens, step in ((1, 1), (60, -1), (10000, 1)):
        summarizer.max_tokens = max_tokens
        found = summarizer.generate(documents[::step])[::step]
        for one, other in zip(found, alone):
            assert one.tokens.tolist() == other.tokens.tolist()
            assert one.score == pytest.approx(other.score, abs=1e-4)


def test_a_minimum_may_be_above_what_does_not_grow_with_the_source(toy: Toy) -> None:
    summarizer = toy.load(max_len_a=2.0, max_len_b=2, min_len=6)
    documents = [summarizer.truncate(summarizer.encode(text)) for text in toy.documents]
    long = [document for document in documents if len(document.tokens) > 4]
    assert min(len(summary.tokens) for summary in summarizer.generate(long)) >= 6


def test_hypotheses_are_those_of_fairseq_generate(toy: Toy, cli: Any) -> None:
    log = run(
        *("fairseq-generate", toy.folder / "bin", "--user-dir", PLUGIN, "--cpu", "--beam", 4),
        *("--path", toy.checkpoint, "--required-batch-size-multiple", 1, "--lenpen", 1.5),
        *("--min-len", 1, "--max-len-b", 20, "--remove-bpe", "sentencepiece"),
        *("--truncate-source", "--max-source-positions", LIMIT, "--dataset-impl", "raw"),
    )
    lines = [line[2:].split("\t") for line in log.splitlines() if line.startswith("H-")]
    expected = {int(number): (text, float(score)) for number, score, text in lines}
    flags = ["--lines", "--json-lines", "--long", "truncate", "--no-repeat-ngram-size", 0]
    status, out, err = cli(*flags, stdin="\n".join(toy.documents).encode())
    found = [json.loads(line) for line in out.splitlines()]
    assert (status, len(found), len(expected)) == (0, len(toy.documents), len(toy.documents))
    for number, record in enumerate(found):
        text, score = expected[number]
        assert (record["line"], record["summary"]) == (number + 1, text)
        assert record["score"] == pytest.approx(score, abs=1e-3)
    assert found[3]["tokens_cut"] > 0
    assert re.search("standard input, line 4: .* cut off", err)


def test_no_run_of_pieces_is_repeated_unless_allowed(toy: Toy) -> None:
    def repeats(size: int) -> int:
        summarizer = toy.load(no_repeat_ngram_size=size, min_len=15)
        documents = [summarizer.truncate(summarizer.encode(text)) for text in toy.documents]
        found = summarizer.generate(documents)
        pairs = [list(pairwise(summary.tokens.tolist())) for summary in found]
        return sum(len(row) - len(set(row)) for row in pairs)

    assert (repeats(0) > 0, repeats(2)) == (True, 0)


def test_ensembles_and_the_summarization_task_load(toy: Toy, tmp_path: Path) -> None:
    state = torch.load(toy.checkpoint)
    state["cfg"]["task"]["_name"] = "summarization"
    torch.save(state, tmp_path / "other.pt")
    single, other = toy.load(), Summarizer.load(tmp_path / "other.pt", toy.folder / "bin", **SEARCH)
    assert (other.task.cfg._name, other.max_source_tokens) == ("summarization", LIMIT)
    both = Summarizer.load(Path(f"{toy.checkpoint}:{tmp_path / 'other.pt'}"), **SEARCH)
    assert len(both.models) == 2
    document = single.encode(toy.documents[0])
    assert len({each.generate([document])[0].text for each in (single, other, both)}) == 1


def test_the_precision_of_decoding_steps_can_be_chosen(toy: Toy, cli: Any) -> None:
    assert [model.decoder.step_precision.name for model in toy.load().models] == ["float32"]
    summarizer = toy.load(step_precision="int8")
    assert [model.decoder.step_precision.name for model in summarizer.models] == ["int8"]
    assert summarizer.summarize(toy.documents[:1])[0].text
    with pytest.raises(UserError, match="--step-precision int4 is none of float32, bfloat16, int8"):
        toy.load(step_precision="int4")
    stock = SimpleNamespace(decoder=torch.nn.Module())
    with pytest.raises(UserError, match="has no other steps than fairseq's: leave it out"):
        use_step_precision([stock], "int8")
    Path("a.txt").write_text(toy.documents[0])
    status, out, _ = cli("a.txt", "--step-precision", "bfloat16")
    assert (status, len(out.splitlines())) == (0, 1)


def test_encoding_is_that_of_the_training_text(toy: Toy) -> None:
    summarizer = toy.load()
    lines = (toy.folder / "bin" / "test.src-tgt.src").read_text(encoding="utf-8").splitlines()
    for text, line in zip(toy.documents, lines):
        document = summarizer.encode(text.replace(". ", ".\r\n\n\t"))
        assert document.pieces == line.split()
        dictionary = summarizer.task.source_dictionary
        assert torch.equal(document.tokens, dictionary.encode_line(line).long())
        assert summarizer.decode(document.tokens) == text
    tokens = summarizer.encode("Bc <pad> </s> fe").tokens.tolist()
    special = (dictionary.eos(), dictionary.pad(), dictionary.unk())
    assert [tokens.count(token) for token in special] == [1, 0, 2]


def test_a_long_document_is_refused_cut_or_divided_as_asked(toy: Toy, cli: Any) -> None:
    summarizer, text = toy.load(), toy.documents[3]
    document = summarizer.encode(text)
    total = len(document.tokens)
    status, out, err = cli(stdin=text.encode())
    assert (status, out) == (1, "")
    assert f"{total} tokens, more than the {LIMIT} that the checkpoint takes: give --long" in err
    with pytest.raises(UserError, match=f"{total} tokens is longer than the {LIMIT}"):
        summarizer.generate([document])

    _, out, err = cli("--long", "truncate", "--json-lines", stdin=text.encode())
    record = json.loads(out)
    assert (record["source_tokens"], record["tokens_cut"]) == (total, total - LIMIT)
    assert f"{total - LIMIT} of {total} tokens cut off" in err
    assert record["summary"] == summarizer.generate([summarizer.truncate(document)])[0].text

    status, out, err = cli("--long", "window", "--json-lines", stdin=text.encode())
    record = json.loads(out)
    parts = summarizer.fit(document, "window")
    assert (record["windows"], record["tokens_cut"]) == (len(parts), 0)
    assert f"in {len(parts)} windows" in err
    assert [piece for part in parts for piece in part.pieces] == document.pieces
    assert all(len(part.tokens) <= LIMIT for part in parts)
    assert all(part.text.endswith(".") for part in parts)
    assert " ".join(part.text for part in parts) == text
    assert record["summary"] == " ".join(each.text for each in summarizer.generate(parts))


def test_a_stream_of_any_length_becomes_one_summary(toy: Toy, cli: Any) -> None:
    summarizer, short = toy.load(), toy.documents[0]
    text = " ".join(toy.documents * 20)
    total = len(summarizer.encode(text).tokens)
    assert total > 100 * LIMIT
    _, out, _ = cli("--long", "stream", "--json-lines", "--stream-memory", 50, stdin=text.encode())
    record = json.loads(out)
    assert [record[key] for key in ("source_tokens", "tokens_cut", "windows")] == [total, 0, 1]
    few = toy.load(stream_memory=50)
    (streamed,) = few.generate([few.encode(text)], stream=True)
    assert record["summary"] == streamed.text
    with torch.no_grad():
        memory = few.model.encoder(few.encode(text).tokens[None])["encoder_out"][0]
    assert len(memory) == math.ceil(total / LIMIT)  # a slot a segment, for they are more than 50
    texts = [short, text, short]
    together = [summary.text for summary in few.summarize(texts, long="stream")]
    alone = [few.summarize([each], long="stream")[0].text for each in texts]
    assert together == alone
    assert together[0] == summarizer.summarize([short])[0].text


def test_a_stock_model_summarizes_and_reads_no_stream(toy: Toy, tmp_path: Path) -> None:
    args = parse(toy.folder / "bin", "transformer", *SMALL, "--max-source-positions", str(LIMIT))
    stock = save_checkpoint(tmp_path / "stock.pt", args)
    summarizer = Summarizer.load(stock, **SEARCH)
    assert len(summarizer.summarize(toy.documents[:1])[0].tokens) > 1
    with pytest.raises(UserError, match="if it is of an updown_transformer, --long stream"):
        summarizer.summarize([toy.documents[3]], long="stream")
    with pytest.raises(UserError, match="has no other steps than fairseq's"):
        Summarizer.load(stock, step_precision="int8", **SEARCH)


# ------------------------------------------------------------------------------ bad documents

BAD = {
    "empty.txt": (b"", "empty"),
    "blank.txt": (b" \n\t\n", "empty"),
    "latin1.txt": ("Bc é fe".encode("latin1"), "not UTF-8: byte 0xe9 at position 3: convert"),
    "utf16.txt": ("Bc fe".encode("utf-16"), "with iconv -f utf-16"),
    "no-mark.txt": ("Bc fe".encode("utf-16-le"), "with iconv -f utf-16"),
    "text.gz": (gzip.compress(b"Bc fe"), "for example with gunzip"),
    "unknown.txt": ("☃☃☃ 一二三 <pad>".encode(), "is in the dictionary"),
    "control.txt": (b"\x01\x02\x03", "is in the dictionary"),
    "nul.txt": (b"\0\0\0\0", "not UTF-8: byte 0x00"),
    "line.txt": (b"bcef" * 100, "tokens, more than the 32"),
    "million.txt": (b"Bc fe. " * 350_000, "tokens, more than the 32"),
    "missing.txt": (None, "No such file"),
    "directory": (None, "Is a directory"),
}


def test_a_bad_document_is_reported_and_the_others_are_done(toy: Toy, cli: Any) -> None:
    Path("directory").mkdir()
    for name, (content, _) in BAD.items():
        if content is not None:
            Path(name).write_bytes(content)
    Path("good").write_text(toy.documents[0])
    files = [file for name in BAD for file in (name, "good")]
    status, out, err = cli(*files, "--json-lines")
    assert (status, err.splitlines()[-1]) == (1, "updown-summarize: 13 of 26 documents failed")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["file"] for record in records] == files
    for record, error in zip(records[::2], err.splitlines()):
        assert BAD[record["file"]][1] in record["error"]
        assert error == f"updown-summarize: {record['file']}: error: {record['error']}"
    assert {record["summary"] for record in records[1::2]} == {cli("good")[1].strip()}


def test_half_a_character_is_an_unknown_one(toy: Toy) -> None:
    summarizer, text = toy.load(), toy.documents[0]
    document = summarizer.encode(text + " \ud83d")
    assert document.text == text + " \ufffd"
    assert document.tokens.equal(summarizer.encode(text + " \ufffd").tokens)


@pytest.mark.parametrize("long", ["truncate", "window"])
def test_text_that_is_odd_but_readable_is_summarized(toy: Toy, cli: Any, long: str) -> None:
    odd = {
        "nul": toy.documents[0].replace(" ", "\0 \x07"),
        "bom": "\ufeff" + toy.documents[0],
        "breaks": toy.documents[0].replace(" ", "\r\n\u2028"),
        "one word": "bcef" * 300,
        "emoji": toy.documents[0] + " \U0001f600\ud7ff\U0010ffff",
    }
    for name, text in odd.items():
        Path(name).write_bytes(text.encode())
    strange = os.fsdecode(b"caf\xe9\n.txt")  # a name that is not UTF-8, with a line break
    Path(strange).write_text(toy.documents[0])
    status, out, err = cli(*odd, strange, "--json-lines", "--long", long)
    records = [json.loads(line) for line in out.splitlines()]
    assert (status, len(records)) == (0, len(odd) + 1)
    assert records[1]["summary"] == records[2]["summary"] == records[-1]["summary"]
    assert records[-1]["file"] == "caf\ufffd\n.txt"
    assert re.search("nul: .* are unknown to the checkpoint", err)


def test_a_document_that_does_not_fit_memory_costs_only_itself(
    toy: Toy, cli: Any, monkeypatch: Any
) -> None:
    search = Summarizer._search

    def scarce(self: Summarizer, documents: Any) -> Any:
        if sum(len(document.tokens) for document in documents) > 25:
            raise torch.OutOfMemoryError("out of memory")
        return search(self, documents)

    arguments = ["--lines", "--json-lines", "--long", "truncate"]
    lines = "\n".join(toy.documents).encode()
    expected = list(map(json.loads, cli(*arguments, stdin=lines)[1].splitlines()))
    monkeypatch.setattr(Summarizer, "_search", scarce)
    status, out, _ = cli(*arguments, stdin=lines)
    assert status == 1
    for record, before in zip(map(json.loads, out.splitlines()), expected):
        if before["source_tokens"] > 25:
            assert "does not fit the memory" in record["error"]
        else:
            assert record["summary"] == before["summary"]


def test_plain_output_names_files_only_if_there_are_several(toy: Toy, cli: Any) -> None:
    Path("a.txt").write_text(toy.documents[0])
    Path("b.txt").write_text(toy.documents[1])
    first, second = (cli(name)[1] for name in ("a.txt", "b.txt"))
    assert first != second
    assert cli(stdin=toy.documents[0].encode())[1] == first
    both = cli("a.txt", "-", stdin=toy.documents[1].encode())[1]
    assert both == f"==> a.txt <==\n{first}\n==> - <==\n{second}\n"
    lines = f"{toy.documents[0]}\r\n\n{toy.documents[1]}".encode()
    status, out, err = cli("--lines", stdin=lines)
    assert (status, out) == (1, first + "\n" + second)  # the empty line keeps its place
    assert "standard input, line 2: error: empty" in err


def test_a_summary_that_cannot_be_written_is_still_in_the_record(
    toy: Toy, cli: Any, monkeypatch: Any
) -> None:
    Path("a.txt").write_text(toy.documents[0])
    expected = json.loads(cli("a.txt", "--json-lines")[1])["summary"]

    def full(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(summarize, "write_atomic", full)
        status, out, _ = cli("a.txt", "--json-lines", "--out-dir", "o")
    record = json.loads(out)
    assert (status, record["summary"]) == (1, expected)
    assert record["error"] == "not written: [Errno 28] No space left on device"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit, match="--out-dir o cannot be written to: give"):
        cli("a.txt", "--out-dir", "o")


def test_out_dir_keeps_what_is_there(toy: Toy, cli: Any) -> None:
    Path("a.txt").write_text(toy.documents[0])
    Path("b.md").write_text(toy.documents[1])
    expected = cli("a.txt")[1]
    arguments = ["a.txt", "b.md", "--out-dir", "new/out"]
    status, out, err = cli(*arguments)
    assert (status, out, err) == (0, "", "updown-summarize: 2 summaries are in new/out\n")
    written = Path("new/out/a.summary.txt")
    assert written.read_text() == expected
    assert sorted(os.listdir("new/out")) == ["a.summary.txt", "b.md.summary.txt"]

    written.write_text("mine")
    Path("new/out/b.md.summary.txt").unlink()
    status, out, err = cli(*arguments, "--json-lines")
    assert "a.summary.txt exists: give --overwrite" in err
    assert (status, written.read_text()) == (1, "mine")
    assert Path(json.loads(out.splitlines()[1])["output"]).samefile("new/out/b.md.summary.txt")
    assert cli(*arguments, "--overwrite")[0] == 0
    assert written.read_text() == expected

    Path("a.summary.txt").write_text(toy.documents[2])
    status, _, err = cli("a.txt", "a.summary.txt", "--out-dir", ".", "--overwrite")
    assert "would replace the input a.summary.txt" in err
    assert (status, Path("a.summary.txt").read_text()) == (1, toy.documents[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a/x.txt", "b/x.txt", "--out-dir", "o"], "would both be o/x.summary.txt"),
        (["x.txt", "--out-dir", "file"], "--out-dir file is not a directory"),
        (["--lines", "--out-dir", "o"], "leave out --lines"),
        (["--overwrite"], "--overwrite goes with --out-dir"),
        (["--checkpoint", "none.pt"], "--checkpoint none.pt does not exist"),
        (["--checkpoint", "."], "--checkpoint . is a directory"),
        (["--checkpoint", "file"], "--checkpoint file is no"),
        (["--checkpoint", "unsafe.pt"], "safe loader refuses"),
        (["--checkpoint", "tensors.pt"], "--checkpoint tensors.pt is no complete fairseq"),
        (["--checkpoint", "nan.pt"], "not finite"),
        (["--data", "none"], "--data none has no dict.src.txt"),
        (["--data", "small"], "small/dict.src.txt makes a dictionary of 5, but"),
        (["--sentencepiece-model", "none"], "sentencepiece model none: No such file"),
        (["--sentencepiece-model", "file"], "file is no sentencepiece model"),
        (["--sentencepiece-model", "other.model"], "so the training text was encoded with"),
        (["--min-len", "30"], "--min-len 30 is more than the 20"),
        (["--max-len-b", "900", "--min-len", "60"], "--min-len 60 is more than the 39"),
        (["--no-repeat-ngram-size", "1"], "give 0 (off), 2 or more"),
        (["--device", "nonsense"], "--device nonsense cannot be used"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    toy: Toy, cli: Any, arguments: List[str], message: str, capsys: Any
) -> None:
    Path("file").write_text("some text")
    Path("unsafe.pt").write_bytes(pickle.dumps({"model": Path.exists}))
    torch.save({"model": {"weight": torch.zeros(2)}}, "tensors.pt")
    Path("small").mkdir()
    Path("small/dict.src.txt").write_text("word 1\n")
    Path("small/dict.tgt.txt").write_text("word 1\n")
    if "nan.pt" in arguments:
        state = torch.load(toy.checkpoint)
        state["model"]["decoder.embed_tokens.weight"][5] = float("nan")
        torch.save(state, "nan.pt")
    train_sentencepiece(map(str, range(1000, 1400)), 30, Path("other.model"))
    with pytest.raises(SystemExit) as error:
        cli(*arguments)
    assert message in (capsys.readouterr().err if error.value.code == 2 else str(error.value))
    assert "\n" not in str(error.value)


def test_the_command_is_quiet_and_stops_with_its_reader(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n".join(toy.documents[4:]))
    program = [sys.executable, "-m", "fairseq_updown.cli.summarize"]
    script = [*program, "--checkpoint", toy.checkpoint, *FLAGS, "--lines"]
    command = f"set -o pipefail; {shlex.join(map(str, script))} < {tmp_path / 'text'} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_lines_are_summarized_while_their_writer_goes_on(toy: Toy, tmp_path: Path) -> None:
    pipe, log = tmp_path / "pipe", tmp_path / "log"
    os.mkfifo(pipe)
    log.touch()
    order = ["updown-summarize", "--checkpoint", toy.checkpoint, *FLAGS, "--lines"]
    program = start(*order, log=log, stdin=pipe)
    expected = [summary.text for summary in toy.load().summarize(toy.documents[:2])]
    with pipe.open("w") as writer:
        for number, document in enumerate(toy.documents[:2], 1):
            print(document, file=writer, flush=True)
            deadline = time.time() + 100
            while log.read_text().count("\n") < number and time.time() < deadline:
                time.sleep(0.02)
            assert log.read_text().splitlines() == expected[:number]
    assert program.wait() == 0
