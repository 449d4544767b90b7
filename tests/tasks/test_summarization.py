"""The summarization task: nothing disappears, cuts are exact and counted, ROUGE is reproducible."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pytest
import torch
from commands import PLUGIN, run, train_arguments
from fairseq import checkpoint_utils
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.data import ListDataset
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from toy import STOCK, build, random_tokens
from work_counter import tensors_in

from fairseq_updown.data.summarization_dataset import (
    SummarizationDataset,
    TruncatedDataset,
    TruncationCount,
)
from fairseq_updown.models.updown_transformer.model import tile_positions
from fairseq_updown.scoring.rouge import ROUGE_TYPES, Rouge, RougeScorer
from fairseq_updown.tasks.summarization import SummarizationConfig, SummarizationTask

SENTENCES = "The cat sat on a mat. It purred loudly! Then Dr. Who came? yes. The end"


# ------------------------------------------------------------------------------------ truncation


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8), limit=st.integers(1, 13))
def test_truncation_keeps_the_beginning_and_the_end_of_sentence(
    sizes: List[int], limit: int
) -> None:
    samples = [torch.cat([torch.arange(4, 3 + size), torch.tensor([2])]) for size in sizes]
    dataset = TruncatedDataset(ListDataset(samples, sizes), limit)
    for index, tokens in enumerate(samples):
        cut = dataset[index]
        assert len(cut) == dataset.size(index) == dataset.sizes[index] == min(len(tokens), limit)
        assert cut[-1] == 2
        assert cut[:-1].equal(tokens[: len(cut) - 1])
    count = TruncationCount.of(sizes, limit)
    gone = sum(len(tokens) - len(dataset[index]) for index, tokens in enumerate(samples))
    assert count == (len(sizes), sum(s > limit for s in sizes), sum(sizes), gone, max(sizes))


# ----------------------------------------------------------------------------------------- ROUGE


@pytest.mark.parametrize("stemmer", [True, False])
def test_rouge_is_that_of_the_library_on_split_sentences(stemmer: bool) -> None:
    hypothesis = "A cat sits on mats. The end came! loudly"
    library = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=stemmer)
    lines = (
        "The cat sat on a mat.\nIt purred loudly!\nThen Dr.\nWho came? yes.\nThe end",
        "A cat sits on mats.\nThe end came! loudly",
    )
    expected = {name: 100 * score.fmeasure for name, score in library.score(*lines).items()}
    assert Rouge(stemmer)(hypothesis, SENTENCES) == expected
    assert 0 < expected["rougeL"] < expected["rougeLsum"] < 100


@pytest.mark.parametrize(("join", "said"), [("sentencepiece", "the cat"), (None, "▁the ▁c at")])
def test_validation_text_is_joined_as_asked(work: Path, join: Any, said: str) -> None:
    task = make_task(
        work,
        eval_rouge=True,
        eval_rouge_no_stemmer=True,
        eval_rouge_remove_bpe=join,
        eval_rouge_args='{"beam": 3}',
    )
    task.build_model(Namespace(_name="updown_transformer", **STOCK))
    tokens = [task.tgt_dict.add_symbol(piece) for piece in ("▁the", "▁c", "at")]
    assert task._text(torch.tensor([*tokens, 2])) == said
    assert task.rouge.signature == Rouge(stemmer=False).signature != Rouge().signature
    assert task.rouge_generator.beam_size == 3


def test_an_unknown_word_of_the_reference_matches_nothing() -> None:
    scores = Rouge()("the unk cat <unk>", "the <<unk>> cat <<unk>>")
    assert scores["rouge1"] == pytest.approx(50.0)


def test_scorer_means_the_samples_and_names_the_stemming() -> None:
    scorer = RougeScorer(Namespace(rouge_no_stemmer=True))
    assert scorer.score() == 0.0
    for reference, hypothesis in (("a b c", "a b c"), ("a b c", "d")):
        scorer.add_string(reference, hypothesis)
    assert scorer.score() == pytest.approx(50.0)
    assert "no stemmer" in scorer.result_string()
    assert "ROUGE-Lsum 50.00 (2 samples" in scorer.result_string()


# ------------------------------------------------------------------------------------- positions


def test_learned_positions_fit_a_longer_and_a_shorter_model() -> None:
    options = dict(encoder_learned_pos=True, decoder_learned_pos=True, max_source_positions=12)
    trained = build(**options)
    generator = torch.Generator().manual_seed(0)
    src, prev = random_tokens(generator, 2, 12), random_tokens(generator, 2, 7)
    before = trained(src, None, prev)[0]
    for source, target in ((40, 2000), (12, 7)):
        other = build(
            seed=1, **{**options, "max_source_positions": source, "max_target_positions": target}
        )
        other.load_state_dict(trained.state_dict())
        torch.testing.assert_close(other(src, None, prev)[0], before, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="12 tokens exceeds --max-source-positions 5"):
        build(**{**options, "max_source_positions": 5})(src, None, prev)
    with pytest.raises(ValueError, match="8 tokens exceeds --max-target-positions 7"):
        other(src, None, random_tokens(generator, 2, 8))


def test_extended_positions_repeat_the_trained_ones() -> None:
    weight = torch.arange(10.0).view(5, 2)  # rows 0 and 1 are no positions
    tiled = tile_positions(weight, 9, first=2)
    assert tiled[:, 0].tolist() == [0, 2, 4, 6, 8, 4, 6, 8, 4]
    assert tile_positions(weight, 3, first=2).equal(weight[:3])


# -------------------------------------------------------------------------------------- the task


def make_task(work: Path, **options: Any) -> SummarizationTask:
    cfg = SummarizationConfig(data=str(work / "bin"), source_lang="src", target_lang="tgt")
    cfg.dataset_impl, cfg.train_subset, cfg.required_seq_len_multiple = None, "train", 1
    for name, value in options.items():
        assert hasattr(cfg, name)
        setattr(cfg, name, value)
    return SummarizationTask.setup_task(cfg)


def batches(task: SummarizationTask, split: str, **options: Any) -> List[Dict[str, Any]]:
    task.load_dataset(split)
    iterator = task.get_batch_iterator(
        task.dataset(split), max_positions=task.max_positions(), **options
    )
    return list(iterator.next_epoch_itr(shuffle=False))


@pytest.mark.parametrize("buckets", [0, 3])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_every_sample_is_in_one_batch(work: Path, split: str, multiple: int, buckets: int) -> None:
    task = make_task(work, truncate_source=True, max_source_positions=30, num_batch_buckets=buckets)
    found = batches(task, split, max_tokens=300, required_batch_size_multiple=multiple)
    numbers = sorted(number for batch in found for number in batch["id"].tolist())
    assert numbers == list(range(len(task.dataset(split))))
    shapes = [batch["net_input"]["src_tokens"].shape for batch in found]
    assert max(width for _, width in shapes) == 30
    assert all(rows * width <= 300 for rows, width in shapes)
    if buckets:
        assert len({width for _, width in shapes}) <= buckets


@pytest.mark.parametrize("buckets", [0, 1])
def test_no_bucket_makes_a_sample_too_long(work: Path, buckets: int) -> None:
    dictionary = make_task(work).src_dict
    sizes = np.array([5, 9, 11])
    texts = ListDataset([torch.full((size,), 5) for size in sizes], sizes)
    dataset = SummarizationDataset(
        texts, sizes, dictionary, texts, sizes, dictionary, num_buckets=buckets
    )
    kept, ignored = dataset.filter_indices_by_size(np.arange(3), (10, 10))
    assert (kept.tolist(), ignored) == ([0, 1], [2])


@pytest.mark.parametrize("buckets", [0, 4])
def test_documents_of_64k_tokens_are_batched_by_length(work: Path, buckets: int) -> None:
    task = make_task(work, max_source_positions=65536)
    sizes = np.array([300, 8192, 65536, 40000, 8000, 16384, 20000, 64, 9000, 64000])
    documents = ListDataset([torch.full((size,), 5) for size in sizes], sizes)
    summaries = ListDataset([torch.full((20,), 6)] * 10, np.full(10, 20))
    task.datasets["train"] = SummarizationDataset(
        documents, sizes, task.src_dict, summaries, summaries.sizes, task.tgt_dict,
        num_buckets=buckets,
    )  # fmt: skip
    iterator = task.get_batch_iterator(
        task.dataset("train"), max_tokens=65536, max_positions=task.max_positions()
    )
    found = list(iterator.next_epoch_itr(shuffle=False))
    assert sorted(i for batch in found for i in batch["id"].tolist()) == list(range(10))
    shapes = [batch["net_input"]["src_tokens"].shape for batch in found]
    assert all(rows * width <= 65536 for rows, width in shapes)
    assert len(found) < 10  # the shorter ones share batches
    padding = sum(batch["net_input"]["src_tokens"].eq(1).sum().item() for batch in found)
    assert padding < sizes.sum() * (0.2 if buckets == 0 else 0.6)


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        ("rougeL", {}, "rougeL: give --eval-rouge, too"),
        ("rougeL", dict(eval_rouge=True), "rougeL: give --maximize-best-checkpoint-metric, too"),
        ("rouge_l", dict(eval_rouge=True), "rouge_l: choose rouge1, rouge2, rougeL, rougeLsum"),
    ],
)
def test_a_rouge_that_is_not_there_at_validation_is_refused_at_the_start(
    work: Path, metric: str, options: Dict[str, Any], message: str
) -> None:
    task = make_task(work, **options)
    with pytest.raises(ValueError, match=message):
        task.check_best_metric(metric, maximize=False)
    task.check_best_metric("nll_loss", maximize=False)
    make_task(work, eval_rouge=True).check_best_metric("rougeLsum", maximize=True)


def test_nothing_is_kept_of_what_is_read_once(work: Path) -> None:
    """As `fairseq-interactive` reads its buffers."""
    task = make_task(work)
    dataset = task.build_dataset_for_inference([torch.arange(4, 24)], [20])
    assert len(task.get_batch_iterator(dataset, max_tokens=300).next_epoch_itr()) == 1
    assert not task.dataset_to_epoch_iter


def test_generation_may_leave_out_what_is_too_long_of_the_training_set(
    work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task(work, max_source_positions=30)
    task.build_model(Namespace(**STOCK, arch="updown_transformer"), from_checkpoint=True)
    task.load_dataset("train")
    dataset, limits = task.dataset("train"), task.max_positions()
    kept = task.filter_indices_by_size(np.arange(len(dataset)), dataset, limits, True)
    assert 0 < len(kept) < len(dataset)
    assert "and are left out" in caplog.text


def test_too_long_samples_are_refused_even_in_training(work: Path) -> None:
    task = make_task(work, max_source_positions=30)
    for split in ("train", "valid"):
        with pytest.raises(ValueError, match=r"too long .*limits are .30, 1024.*--truncate-source"):
            batches(task, split, max_tokens=300, ignore_invalid_inputs=split == "train")
    task = make_task(work, max_source_positions=30)
    kept = batches(task, "valid", max_tokens=300, ignore_invalid_inputs=True)
    assert 0 < sum(len(batch["id"]) for batch in kept) < 20


def test_a_sample_over_max_tokens_is_refused_with_its_length(work: Path) -> None:
    task = make_task(work)
    with pytest.raises(ValueError, match=r"--max-tokens 40: a sample of \d\d tokens fits no batch"):
        batches(task, "valid", max_tokens=40)


def test_epochs_take_the_data_folders_in_turn(work: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for path in (work / "bin").iterdir():
        if not path.name.startswith(("valid", "test")):
            swapped = path.name.replace("train", "valid")
            (tmp_path / "bin" / path.name).write_bytes((work / "bin" / swapped).read_bytes())
    task, other = make_task(work), make_task(tmp_path)
    for split in ("train", "valid"):
        task.load_dataset(split)
    other.load_dataset("train")
    both = make_task(work, data=f"{work / 'bin'}:{tmp_path / 'bin'}")
    expected = [task.dataset("train"), other.dataset("train"), task.dataset("train")]
    assert len(expected[0]) != len(expected[1])
    for epoch, dataset in enumerate(expected, start=1):
        both.load_dataset("train", epoch=epoch)
        assert len(both.dataset("train")) == len(dataset)
        assert both.dataset("train")[0]["source"].equal(dataset[0]["source"])
        both.load_dataset("valid", epoch=epoch)
        assert len(both.dataset("valid")) == len(task.dataset("valid"))


def test_cut_targets_keep_their_whole_reference(work: Path) -> None:
    task = make_task(work, truncate_target=True, max_target_positions=5)
    whole = make_task(work)
    for batch, other in zip(
        batches(task, "valid", max_tokens=300), batches(whole, "valid", max_tokens=300)
    ):
        assert batch["target"].size(1) == 5
        assert batch["id"].equal(other["id"])
        assert other["reference"] is None
        references = batch["reference"].split(batch["reference_lengths"].tolist())
        for reference, target in zip(references, other["target"], strict=True):
            assert reference.equal(target[target.ne(1)])


def test_large_batches_come_from_workers_with_few_open_files(work: Path) -> None:
    """A worker sends each tensor by a file of its own; a batch has as many, however many rows."""
    task = make_task(work, truncate_target=True, max_target_positions=5)
    task.load_dataset("train")
    dataset = task.dataset("train")
    numbers = {}
    for rows in (2, 9):
        batch = dataset.collater([dataset[index] for index in range(rows)])
        assert len(batch["id"]) == len(batch["reference_lengths"]) == rows
        numbers[rows] = len(list(tensors_in(batch)))
    assert numbers[2] == numbers[9]


@pytest.mark.parametrize("text", ["{", "[1]", "beam"])
def test_generation_options_that_are_no_json_object_stop_the_start(work: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"--eval-rouge-args .* is no JSON object"):
        make_task(work, eval_rouge_args=text)


def test_interactive_input_is_cut_to_the_models_limit(work: Path) -> None:
    task = make_task(work, truncate_source=True, max_source_positions=6)
    inputs = [torch.arange(4, 14), torch.tensor([5, 2])]
    dataset = task.build_dataset_for_inference(inputs, [10, 2])
    assert dataset[0]["source"].tolist() == [4, 5, 6, 7, 8, 13]
    assert dataset[1]["source"].tolist() == [5, 2]
    assert list(dataset.src_sizes) == [6, 2]


def test_validation_keeps_no_attention_and_no_sample(work: Path) -> None:
    options = dict(eval_rouge_args='{"beam": 2, "max_len_b": 6}', eval_rouge_remove_bpe=None)
    task = make_task(work, truncate_target=True, max_target_positions=8, eval_rouge=True, **options)
    model = task.build_model(Namespace(_name="updown_transformer", **STOCK)).eval()
    batch = batches(task, "valid", max_tokens=300)[0]
    before = dict(batch)
    found: List[Any] = []
    generate = task.inference_step

    def spy(*args: Any, **kwargs: Any) -> Any:
        found.extend(generate(*args, **kwargs))
        return found

    task.inference_step = spy  # type: ignore[method-assign]
    encoded: List[Any] = []
    hook = model.encoder.layers[0].register_forward_hook(lambda *_: encoded.append(1))
    criterion = LabelSmoothedCrossEntropyCriterion(task, False, 0.1)
    _, _, logged = task.valid_step(batch, model, criterion)
    assert len(encoded) == 1  # for the loss and the search
    hook.remove()
    again = generate(task.rouge_generator, [model], dict(batch))
    for beams, expected in zip(found, again):
        assert [x["tokens"].tolist() for x in beams] == [x["tokens"].tolist() for x in expected]
    assert logged["_rouge_samples"] == len(found) == len(batch["id"])
    assert all(len(best["attention"]) == 0 for beams in found for best in beams)
    assert model.decoder.layers[-1].need_attn
    assert all(batch[name] is before[name] for name in before)


# -------------------------------------------------------------------------------- real commands

CUT = [
    *("--task", "summarization", "--truncate-source", "--truncate-target"),
    *("--max-source-positions", 24, "--max-target-positions", 6),
]


@pytest.fixture(scope="session")
def checkpoint(work: Path, make_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Trained with ROUGE at validation; `train.log` is beside it."""
    rouge = ["--eval-rouge", "--eval-rouge-remove-bpe", "none"]
    rouge += ["--eval-rouge-args", '{"beam": 2, "max_len_b": 9, "min_len": 4}']
    best = ["--best-checkpoint-metric", "rougeL", "--maximize-best-checkpoint-metric"]
    learned = ["--encoder-learned-pos", "--eval-rouge-print-samples"]

    def train(folder: Path) -> None:
        arguments = train_arguments(work, folder, *CUT, *rouge, *best, *learned)
        (folder / "train.log").write_text(run("fairseq-train", *arguments))

    return make_once("summarization", train) / "checkpoint_last.pt"


@pytest.mark.slow
def test_training_logs_cuts_and_rouge_and_keeps_the_best(checkpoint: Path) -> None:
    log = checkpoint.with_name("train.log").read_text()
    assert re.search(r"train sources: \d+ of 240 cut to 24 tokens \(longest 60; ", log)
    assert re.search(r"valid targets: \d+ of 20 cut to 6 tokens", log)
    assert "Porter stemmer" in log
    assert "example hypothesis: w" in log
    found = [float(x) for x in re.findall(r"\| rougeL ([\d.]+) \|", log)]
    assert found
    assert max(found) > 1
    assert f"score {max(found)}" in log


def scores(text: str) -> Dict[str, float]:
    found = dict(re.findall(r"(ROUGE-\w+) ([\d.]+)", text.splitlines()[-1]))
    return {name.replace("ROUGE-", "rouge"): float(value) for name, value in found.items()}


@pytest.mark.slow
def test_rouge_of_generation_validation_and_the_printed_text_agree(
    work: Path, checkpoint: Path
) -> None:
    out = run(
        *("fairseq-generate", work / "bin", "--user-dir", PLUGIN, "--cpu", "--path", checkpoint),
        *("--gen-subset", "valid", "--scoring", "rouge", *CUT),
        *("--beam", 2, "--max-len-b", 9, "--min-len", 4),
    )
    texts = {
        kind: dict(re.findall(rf"^{kind}-(\d+)\t(?:-?[\d.]+\t)?(.*)$", out, re.MULTILINE))
        for kind in "TD"
    }
    assert len(texts["T"]) == len(texts["D"]) == 20
    # The references are whole, though the loss saw only 6 tokens of them.
    raw = (work / "valid.tgt").read_text().splitlines()
    assert [texts["T"][str(i)] for i in range(20)] == raw
    rows = [Rouge()(texts["D"][key], texts["T"][key]) for key in texts["T"]]
    means = {name: round(sum(row[name] for row in rows) / 20, 2) for name in ROUGE_TYPES}
    assert scores(out) == means
    last = checkpoint.with_name("train.log").read_text().split("| valid | ")[-1]
    logged = {name: float(re.search(rf"\| {name} ([\d.]+) ", last)[1]) for name in ROUGE_TYPES}
    assert logged == pytest.approx(means, abs=0.011)


def test_a_dictionary_of_as_many_other_words_is_refused_and_a_missing_bos_told(
    work: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))
    task = make_task(work)
    model = task.build_model(state["cfg"].model)
    model.load_state_dict(state["model"])
    assert "--prepend-bos" not in caplog.text
    state["model"].options["prepend_bos"] = True
    model.load_state_dict(state["model"])
    assert "trained with --prepend-bos, and goes on without" in caplog.text
    words = task.tgt_dict.symbols
    words[5], words[6] = words[6], words[5]
    with pytest.raises(ValueError, match="trained with other dictionaries than dict"):
        model.load_state_dict(state["model"])


@pytest.mark.slow
def test_interactive_cuts_and_longer_positions_are_given_on_request(
    work: Path, checkpoint: Path
) -> None:
    command = ["fairseq-interactive", work / "bin", "--user-dir", PLUGIN, "--cpu", "--beam", 2]
    command += ["--path", checkpoint, "--task", "summarization"]
    line = " ".join(f"w{i % 30}" for i in range(50)) + "\n"
    out = run(*command, "--truncate-source", input="w1 w2\n" + line)
    assert "input: 1 of 1 cut to 24 tokens (longest 51" in out
    assert len(re.findall(r"^D-\d", out, re.MULTILINE)) == 2
    assert "too long" in run(*command, input=line, check=False)
    out = run(*command, "--max-source-positions", 60, input=line)
    assert "learned positions are repeated" in out
    assert len(re.findall(r"^D-\d", out, re.MULTILINE)) == 1
