"""--prepend-bos and --bpe gpt2: one start and one text in training, validation and generation."""

import json
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import pytest
import torch
from commands import PLUGIN, run
from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from fairseq.models.transformer import base_architecture
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from tiny_gpt2 import WORDS, make_data, make_files
from toy import STOCK

from fairseq_updown.cli import highlight
from fairseq_updown.data.bpe import ForgivingGPT2, build_bpe
from fairseq_updown.errors import UserError
from fairseq_updown.inference.pieces import Pieces
from fairseq_updown.inference.summarizer import Summarizer
from fairseq_updown.models.updown_transformer.model import UpdownTransformerModel
from fairseq_updown.scoring.rouge import ROUGE_TYPES, Rouge
from fairseq_updown.tasks.summarization import SummarizationConfig, SummarizationTask

LIMIT = 24
SEARCH = ["--beam", 2, "--max-len-b", 18, "--min-len", 2]


def make_task(folder: Path, **options: Any) -> SummarizationTask:
    cfg = SummarizationConfig(data=str(folder / "bin"), source_lang="src", target_lang="tgt")
    cfg.dataset_impl, cfg.train_subset, cfg.required_seq_len_multiple = "raw", "train", 1
    for name, value in options.items():
        assert hasattr(cfg, name)
        setattr(cfg, name, value)
    return SummarizationTask.setup_task(cfg)


@pytest.fixture(scope="module")
def data(make_once: Any) -> Path:
    return make_once("gpt2", make_data)


@pytest.fixture(scope="module")
def checkpoint(data: Path, make_once: Any) -> Path:
    """The folder, with `log`, of a training on it."""

    def train(folder: Path) -> None:
        rouge = ["--eval-rouge", "--eval-rouge-args", '{"beam": 2, "max_len_b": 18, "min_len": 2}']
        log = run(
            *("fairseq-train", data / "bin", "--user-dir", PLUGIN, "--task", "summarization"),
            *("--dataset-impl", "raw", "--source-lang", "src", "--target-lang", "tgt", "--cpu"),
            *("--arch", "updown_transformer_tiny", "--share-all-embeddings", "--dropout", 0),
            *("--prepend-bos", "--truncate-source", "--max-source-positions", LIMIT),
            *("--truncate-target", "--max-target-positions", 20, *rouge, *make_files(data)),
            *("--optimizer", "adam", "--lr", 0.005, "--max-tokens", 400, "--max-update", 60),
            *("--save-dir", folder, "--no-epoch-checkpoints", "--no-progress-bar"),
        )
        (folder / "log").write_text(log)

    return make_once("gpt2-trained", train)


# --------------------------------------------------------------------------------------- <s>


def test_batches_begin_as_bart_does_and_keep_the_limits(data: Path) -> None:
    limits = dict(max_source_positions=12, max_target_positions=6)
    cut = dict(truncate_source=True, truncate_target=True)
    task = make_task(data, prepend_bos=True, **limits, **cut)
    task.load_dataset("valid")
    plain = make_task(data)
    plain.load_dataset("valid")
    dataset, whole = task.dataset("valid"), plain.dataset("valid")
    batch = dataset.collater([dataset[i] for i in range(len(dataset))])
    references = batch["reference"].split(batch["reference_lengths"].tolist())
    for row, index in enumerate(batch["id"].tolist()):
        source = whole[index]["source"].tolist()
        source = source if len(source) < 12 else [*source[:10], 2]
        assert strip(batch["net_input"]["src_tokens"][row]) == [0, *source]
        reference = whole[index]["target"].tolist()
        target = reference if len(reference) < 6 else [*reference[:4], 2]
        assert strip(batch["target"][row]) == [0, *target]
        assert strip(batch["net_input"]["prev_output_tokens"][row]) == [2, 0, *target[:-1]]
        assert references[row].tolist() == [0, *reference]
    assert list(dataset.src_sizes) == [len(dataset[i]["source"]) for i in range(len(dataset))]
    inputs = task.build_dataset_for_inference([torch.arange(4, 24), torch.tensor([5, 2])], [20, 2])
    assert inputs[0]["source"].tolist() == [0, *range(4, 14), 23]
    assert inputs[1]["source"].tolist() == [0, 5, 2]
    assert list(inputs.src_sizes) == [12, 3]


def strip(tokens: torch.Tensor) -> List[int]:
    return tokens[tokens.ne(1)].tolist()


def test_alignments_of_sources_without_it_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="--load-alignments: the alignments count tokens without"):
        make_task(data, prepend_bos=True, load_alignments=True)


def test_a_checkpoint_of_an_old_architecture_is_built_as_it_was_trained(data: Path) -> None:
    """fairseq keeps all options of one that has no configuration, such as `bart_large`, in one."""
    trained = Namespace(**STOCK, arch="transformer", prepend_bos=True)
    trained.max_source_positions = trained.max_target_positions = 32
    base_architecture(trained)
    task = make_task(data, max_source_positions=64)
    model = task.build_model(trained, from_checkpoint=True)
    assert task.cfg.prepend_bos
    assert model.max_positions() == (64, 32)


def test_the_decoder_is_made_to_begin_with_it_unless_a_prefix_is_given(data: Path) -> None:
    def begun(task: SummarizationTask, *prefix: torch.Tensor) -> Any:
        return task.inference_step(generator, [], sample, *prefix)

    generator = SimpleNamespace(generate=lambda models, sample, prefix_tokens, **_: prefix_tokens)
    sample = {"net_input": {"src_tokens": torch.tensor([[0, 5, 2], [0, 2, 1]])}}
    task = make_task(data, prepend_bos=True)
    assert begun(task).tolist() == [[0], [0]]
    given = torch.tensor([[0, 7], [0, 8]])
    assert begun(task, given) is given
    assert begun(make_task(data)) is None


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_alignments_are_of_the_tokens_that_are_printed(data: Path, kind: str) -> None:
    task = make_task(data, prepend_bos=True)
    task.load_dataset("valid")
    torch.manual_seed(1)
    model = task.build_model(Namespace(_name="updown_transformer", **STOCK)).eval()
    model.make_generation_fast_(need_attn=False)  # as fairseq's hub does
    search = Namespace(beam=2, min_len=3, max_len_b=9, print_alignment=kind)
    generator = task.build_generator([model], search)
    dataset = task.dataset("valid")
    sample = dataset.collater([dataset[index] for index in range(4)])
    for row, hypotheses in zip(sample["net_input"]["src_tokens"], task.inference_step(
        generator, [model], sample
    )):  # fmt: skip
        words, found = len(strip(row)) - 2, hypotheses[0]
        written, alignment = len(found["tokens"]) - 2, found["alignment"]
        assert words > 1
        if kind == "hard":
            assert [target for _, target in alignment] == list(range(written))
            assert {source for source, _ in alignment} <= set(range(words))
        else:
            assert [len(weights) for weights in alignment] == [words + 1] * (written + 1)
    assert not model.decoder.layers[-1].need_attn  # as it was
    source, target = torch.tensor([1, 0, 7, 8, 2]), torch.tensor([0, 5, 6, 2])
    attention = torch.tensor([[0, 0.6, 0.3, 0.1, 0], [0, 0.7, 0.1, 0.2, 0]])[[0, 1, 0, 1]]
    found = generator.extract_alignment(attention, source, target, 1, 2)  # most is read of <s>
    first = [(1, 0), (0, 1)] if kind == "hard" else ["0.100000", "0.200000", "0.000000"]
    assert (found if kind == "hard" else found[0]) == first


def test_constraints_do_not_go_with_it(data: Path) -> None:
    task = make_task(data, prepend_bos=True)
    with pytest.raises(ValueError, match="--constraints ordered: with --prepend-bos"):
        task.build_generator([], Namespace(constraints="ordered"))


def test_a_task_that_does_not_heed_it_says_so(data: Path, caplog: Any) -> None:
    trained = Namespace(**STOCK, arch="updown_transformer", prepend_bos=True)
    UpdownTransformerModel.build_model(trained, make_task(data))
    assert not caplog.records
    stock = TranslationTask(TranslationConfig(), *[make_task(data).source_dictionary] * 2)
    UpdownTransformerModel.build_model(trained, stock)
    assert "give --task summarization" in caplog.text


def printed(kind: str, out: str) -> Dict[int, str]:
    rows = re.findall(rf"^{kind}-(\d+)\t(?:-?[\d.]+\t)?(.*)$", out, re.MULTILINE)
    return {int(number): text for number, text in rows}


@pytest.mark.slow
def test_generation_interaction_and_the_summarizer_write_the_same(
    data: Path, checkpoint: Path
) -> None:
    path = checkpoint / "checkpoint_last.pt"
    common = [data / "bin", "--user-dir", PLUGIN, "--cpu", "--task", "summarization", *SEARCH]
    common += ["--path", path, "--source-lang", "src", "--target-lang", "tgt", "--truncate-source"]
    common += make_files(data)
    raw = ["--dataset-impl", "raw", "--scoring", "rouge"]
    # Neither says --prepend-bos: the checkpoint does.
    out = run("fairseq-generate", *common, *raw)
    assert "--prepend-bos, for the checkpoint was trained with it" in out
    generated = printed("D", out)
    texts = (data / "test.src").read_text().splitlines()
    spoken = printed("D", run("fairseq-interactive", *common, input="\n".join(texts) + "\n"))
    search: Dict[str, Any] = dict(beam=2, max_len_b=18, min_len=2, lenpen=1.0)
    search["no_repeat_ngram_size"] = 0
    summarizer = Summarizer.load(path, device="cpu", **search)
    summaries = summarizer.summarize(texts, long="truncate")
    for number, summary in enumerate(summaries):
        assert generated[number].strip() == spoken[number].strip() == summary.text
    assert summarizer.max_source_tokens == LIMIT - 1
    (best,) = summarizer._search([summarizer.encode("the cat")])
    assert best["tokens"][0] == summarizer.task.target_dictionary.bos()
    references = (data / "test.tgt").read_text().splitlines()
    known = [text for text in references if WORDS[-1] not in text.split()]
    assert set(known) < set(printed("T", out).values())


@pytest.mark.slow
def test_rouge_at_validation_is_that_of_the_text_that_generation_prints(
    data: Path, checkpoint: Path
) -> None:
    out = run(
        *("fairseq-generate", data / "bin", "--user-dir", PLUGIN, "--cpu", *SEARCH),
        *("--task", "summarization", "--gen-subset", "valid", "--dataset-impl", "raw"),
        *("--path", checkpoint / "checkpoint_last.pt", "--truncate-source", "--truncate-target"),
        *("--source-lang", "src", "--target-lang", "tgt", "--scoring", "rouge"),
        *make_files(data),
    )
    texts, references = printed("D", out), printed("T", out)
    rows = [Rouge()(texts[key], references[key]) for key in references]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in ROUGE_TYPES}
    assert means["rouge1"] > 1
    last = (checkpoint / "log").read_text().split("| valid | ")[-1]
    for name, value in means.items():
        logged = float(re.search(rf"\| {name} ([\d.]+) ", last)[1])
        assert logged == pytest.approx(value, abs=0.011)


# --------------------------------------------------------------------------------------- BPE


def gpt2(folder: Path) -> Any:
    flags = make_files(folder)
    files = dict(gpt2_encoder_json=str(flags[3]), gpt2_vocab_bpe=str(flags[5]))
    return build_bpe(Namespace(bpe="gpt2", **files)), GPT2BPE(Namespace(**files))


def test_symbols_that_are_no_pieces_stay_and_the_rest_is_fairseqs(tmp_path: Path) -> None:
    ours, stock = gpt2(tmp_path)
    text = " ".join(WORDS)
    pieces = ours.encode(text)
    assert pieces == stock.encode(text)
    assert ours.decode(pieces) == stock.decode(pieces) == text
    first, *rest = pieces.split()
    with_unknown = " ".join([first, "<unk>", *rest])
    assert ours.decode(with_unknown) == stock.decode(with_unknown)
    other = " ".join([first, "<<unk>>", *rest, "madeupword0000"])
    assert ours.decode(other) == f"{text[0]}<<unk>>{text[1:]}madeupword0000"


def test_pieces_are_spelled_and_found_in_the_text(tmp_path: Path) -> None:
    pieces = Pieces(gpt2(tmp_path)[0])
    text = "  the cat\n sat \u732b na\u00efve, don't 1024"
    symbols = pieces.encode(text)
    assert pieces.decode(symbols) == " ".join(text.split())
    assert pieces.spelled(symbols)[:3] == ["th", "e", "\u2581cat"]
    spans = pieces.spans(text, len(symbols))
    assert [text[slice(*span)] for span in spans[:4]] == ["th", "e", "cat", ""]
    ends = [0, *(end for _, end in spans)]
    assert all(end <= begin for end, (begin, _) in zip(ends, spans))
    assert "".join(text[slice(*span)] for span in spans) == "".join(text.split())
    assert pieces.spans(text, 3) == spans[:3]


def test_what_is_not_there_is_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"--bpe gpt2 cannot be built .*--gpt2-encoder-json"):
        build_bpe(Namespace(bpe="gpt2", gpt2_encoder_json="none", gpt2_vocab_bpe="none"))
    path = checkpoint / "checkpoint_last.pt"
    for options, said in (
        (dict(bpe="gpt3"), "--bpe gpt3: choose "),
        (dict(bpe_args="["), "is no JSON object"),
        (dict(bpe_args={"codes": "x"}), "--bpe-args codes: gpt2 has gpt2_encoder_json, gpt2_vocab"),
        (dict(bpe_args={"gpt2_vocab_bpe": "https://x"}), "nothing is fetched from the net"),
        (dict(bpe_args={"gpt2_vocab_bpe": "none"}), "--bpe gpt2 cannot be built"),
        (dict(sentencepiece_model="none"), "sentencepiece model none: No such file"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            Summarizer.load(path, device="cpu", **options)


def test_a_flag_goes_before_the_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    flags = make_files(tmp_path)
    files = dict(gpt2_encoder_json=str(flags[3]), gpt2_vocab_bpe=str(flags[5]))
    path = checkpoint / "checkpoint_last.pt"
    loaded = Summarizer.load(path, device="cpu", bpe="gpt2", bpe_args=json.dumps(files))
    assert isinstance(loaded.pieces.bpe, ForgivingGPT2)
    other = Summarizer.load(path, device="cpu", bpe="characters")
    assert other.encode("a cat").pieces == ["a", "\u2581", "c", "a", "t"]


def test_the_page_shows_text_and_not_the_start(checkpoint: Path) -> None:
    path = checkpoint / "checkpoint_last.pt"
    summarizer = Summarizer.load(path, device="cpu", min_len=2, max_len_b=18)
    text = "the cat sat  on the na\u00efve mat"
    document = summarizer.encode(text)
    page, _ = highlight.highlight(summarizer, text, "title")
    assert len(page.shares) == len(page.slots) == len(document.tokens) == len(page.spans) + 1
    assert [text[slice(*span)] for span in page.spans[:3]] == ["th", "e", "cat"]
    (summary,) = summarizer.generate([document])
    said = "".join(" " * word.space + word.text for word in page.words)
    assert said.split() == summary.text.split() != []
