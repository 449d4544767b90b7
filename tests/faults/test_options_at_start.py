"""What a user typed wrongly is told before any work, with the flag, the value and the remedy."""

import json
from argparse import Namespace
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Dict

import pytest
from fairseq import tasks
from fairseq.dataclass.configs import GenerationConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from stored import SMALL, make_dictionaries, parse

from fairseq_updown.decoding.search_options import OPTIONS
from fairseq_updown.errors import UserError
from fairseq_updown.inference.loading import check_search, usable_device

ARCH = "updown_transformer_tiny"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_dictionaries(tmp_path / "bin")


@cache
def task_config(*flags: str) -> Any:
    args = parse(Path("DATA"), ARCH, "--task", "summarization", *flags)
    return convert_namespace_to_omegaconf(args).task


def set_up(data: Path, *flags: str, search: Any = None, **more: Any) -> Any:
    """A task, with `search` as `--eval-rouge-args`: to parse them all each time takes long."""
    config = deepcopy(task_config(*flags))
    config.data = str(data)
    if search is not None:
        config.eval_rouge_args = json.dumps(search)
    return tasks.setup_task(config, **more)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beam": 0}, '--eval-rouge-args "beam" 0: give a whole number from 1'),
        ({"beam": 2.5}, '"beam" 2.5: give a whole number'),
        ({"beam": True}, '"beam" True: give a whole number'),
        ({"beam": "4"}, "\"beam\" '4': give a whole number"),
        ({"max_len_b": -1}, '"max_len_b" -1: give a whole number from 0'),
        ({"max_len_a": float("nan")}, '"max_len_a" nan: give a number from 0 to 1e+06'),
        ({"max_len_a": float("inf")}, '"max_len_a" inf: give'),
        ({"min_len": 9, "max_len_b": 8}, '"min_len" 9 is over "max_len_b" 8'),
        ({"min_len": 201}, '"min_len" 201 is over "max_len_b" 200 (default 200)'),
        ({"max_len_b": 0}, '"min_len" 1 is over "max_len_b" 0'),
        ({"lenpen": float("nan")}, '"lenpen" nan: give a number from -10 to 10'),
        ({"lenpen": None}, '"lenpen" None: give a number'),
        ({"unkpen": float("-inf")}, '"unkpen" -inf: give a number from -1e+06'),
        ({"temperature": 0}, '"temperature" 0: give a number from 0.01'),
        ({"sampling": 1}, '"sampling" 1: give true or false'),
        ({"sampling_topk": 5}, '"sampling_topk" 5 goes with "sampling": true'),
        ({"sampling": True, "sampling_topp": 2}, '"sampling_topp" 2: give a number from 0.01 to 1'),
        ({"sampling": True, "match_source_len": True}, '"sampling" and "match_source_len": give'),
        ({"beam": 4, "diverse_beam_groups": 3}, '"diverse_beam_groups" 3: give a number that div'),
        ({"max_lenb": 9}, 'no option "max_lenb" (its value: 9): write "max_len_b"'),
        ({"max-len-b": 9}, 'no option "max-len-b" (its value: 9): write "max_len_b"'),
        ({"beams": 9}, 'write "beam"'),
        ({"prefix_size": 2}, 'no option "prefix_size" (its value: 2): there are beam, max_len_a'),
        ({"score_reference": True}, 'no option "score_reference"'),
    ],
    ids=str,
)
def test_search_at_validation(data: Path, given: Dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        set_up(data, search=given)
    assert str(error.value).startswith("--eval-rouge-args")
    assert message in str(error.value)
    set_up(data, search=given, from_checkpoint=True)


def test_every_option_of_the_search_is_fairseqs_and_its_default_is_taken(data: Path) -> None:
    defaults = {name: getattr(GenerationConfig(), name) for name in OPTIONS}
    set_up(data, "--eval-rouge", search=defaults)


def test_validation_text_options(data: Path) -> None:
    with pytest.raises(ValueError, match=r"--eval-rouge-detok mosse: choose .*moses"):
        set_up(data, "--eval-rouge-detok", "mosse")
    for text in ("[1]", "{", "[" * 100_000, '{"a": 1'):
        with pytest.raises(ValueError, match=r"--eval-rouge-args .* is no JSON object"):
            set_up(data, "--eval-rouge-args", text)
    with pytest.raises(ValueError, match=r"--eval-rouge-detok-args 'x' is no JSON object"):
        set_up(data, "--eval-rouge-detok-args", "x")


def test_text_of_validation(data: Path) -> None:
    for flags, message in (
        (["--eval-rouge-remove-bpe", "x"], "--eval-rouge-remove-bpe x: choose sentencepiece"),
        (["--eval-rouge-detok-args", '{"tokenizer": "x"}'], "give the tokenizer as --eval-rouge-d"),
    ):
        with pytest.raises(ValueError, match=message):
            set_up(data, *flags)


MODEL = {
    "--encoder-attention-heads 0": "it must be at least 1",
    "--decoder-attention-heads -2": "it must be at least 1",
    "--encoder-attention-heads 3": "it must divide --encoder-embed-dim 16",
    "--encoder-embed-dim 0": "it must be at least 1",
    "--decoder-ffn-embed-dim 0": "it must be at least 1",
    "--dropout nan": "it must be from 0 to below 1",
    "--attention-dropout -1.0": "it must be from 0 to below 1",
    "--activation-dropout 1.5": "it must be from 0 to below 1",
    "--encoder-layerdrop 1.0": "it must be from 0 to below 1",
    "--decoder-layerdrop nan": "it must be from 0 to below 1",
    "--quant-noise-pq 2.0": "it must be from 0 to 1",
    "--quant-noise-scalar nan": "it must be from 0 to 1",
    "--quant-noise-pq-block-size 0": "it must be at least 1",
    "--decoder-output-dim 7": "shared embeddings are of --decoder-embed-dim 16",
}


@pytest.mark.parametrize("flag", list(MODEL))
def test_dimensions_and_probabilities_of_the_model(data: Path, flag: str) -> None:
    cfg = convert_namespace_to_omegaconf(parse(data, ARCH, *SMALL, *flag.split()))
    task = tasks.setup_task(cfg.task)
    with pytest.raises(ValueError, match=f"^{flag}: {MODEL[flag]}"):
        task.build_model(cfg.model)


def test_search_of_fairseqs_own_programs(data: Path) -> None:
    task = set_up(data)
    for name, value in (("max_len_a", float("nan")), ("beam", 0), ("temperature", 0.0)):
        flag = "--" + name.replace("_", "-")
        with pytest.raises(UserError, match=f"{flag} {value}: give a"):
            task.build_generator([], GenerationConfig(**{name: value}))


def test_a_summary_longer_than_the_model_writes(data: Path) -> None:
    flags = ["--eval-rouge", "--max-target-positions", "9", *SMALL]
    args = parse(data, ARCH, "--task", "summarization", *flags)
    args.eval_rouge_args = '{"min_len": 9, "max_len_b": 20}'
    cfg = convert_namespace_to_omegaconf(args)
    with pytest.raises(ValueError, match=r'--eval-rouge-args "min_len" 9: .* at most 8 .*--max-'):
        tasks.setup_task(cfg.task).build_model(cfg.model)


def test_left_padded_targets(data: Path) -> None:
    args = parse(data, ARCH, "--left-pad-target", *SMALL)
    cfg = convert_namespace_to_omegaconf(args)
    with pytest.raises(ValueError, match=r"--left-pad-target: decoder blocks .*; leave it out"):
        tasks.setup_task(cfg.task).build_model(cfg.model)
    with pytest.raises(SystemExit):
        parse(data, ARCH, "--left-pad-target", "True")


# what `Summarizer.load` and the programs take; those above are checked by the same table
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(max_len_a=float("nan")), "--max-len-a nan: give a number from 0 to 1e+06"),
        (dict(max_len_a=float("inf")), "--max-len-a inf: give a number from 0 to 1e+06"),
        (dict(lenpen=float("nan")), "--lenpen nan: give a number from -10 to 10"),
        (dict(unkpen=float("nan")), "--unkpen nan: give a number"),
        (dict(max_len_b=0), "--max-len-b 0 is below 1"),
        (dict(beam=1.5), "--beam 1.5: give a whole number from 1"),
        (dict(no_repeat_ngram_size=1), "--no-repeat-ngram-size 1 would allow each piece once"),
    ],
    ids=str,
)
def test_search_of_the_programs(given: Dict[str, Any], message: str) -> None:
    search = dict(beam=4, lenpen=1.5, unkpen=float("inf"), min_len=8, max_len_a=0, max_len_b=200)
    check_search(Namespace(no_repeat_ngram_size=0, **search), 8192)
    with pytest.raises(UserError) as error:
        check_search(Namespace(**{"no_repeat_ngram_size": 0, **search, **given}), 8192)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["meta", "cuda:99", "gpu", "privateuseone", "xla", "cpu:x", "-1"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"--device {name} cannot be used .*: give cpu, or a GPU"):
        usable_device(name)
