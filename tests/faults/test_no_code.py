"""No string of a checkpoint or of a command line is run as code."""

import ast
import contextlib
import sys
from pathlib import Path
from typing import Any, Dict, List

import fairseq
import pytest
import torch
from commands import PLUGIN
from fairseq import checkpoint_utils, options, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.transformer import TransformerModel
from fairseq.optim import build_optimizer
from stored import SMALL, make_dictionaries, parse, save_checkpoint

from fairseq_updown import Summarizer
from fairseq_updown.literals import literal

PAYLOAD = "[__import__('os').system('touch {}') or 100]"
# (architecture, its flags, what the stored options are changed to)
FCONV = ["--encoder-embed-dim", "16", "--decoder-embed-dim", "16", "--decoder-out-embed-dim", "16"]
FCONV += ["--encoder-layers", "[(16, 3)] * 2", "--decoder-layers", "[(16, 3)]"]
PLACES = {
    "ours, softmax": ("updown_transformer_tiny", SMALL, ["adaptive_softmax_cutoff"]),
    "stock, softmax": ("transformer", SMALL, ["adaptive_softmax_cutoff"]),
    "stock, encoder": ("transformer", SMALL, ["encoder_xformers_att_config"]),
    "stock, decoder": ("transformer", SMALL, ["decoder_xformers_att_config"]),
    "fconv": ("fconv", FCONV, ["encoder_layers", "decoder_layers", "decoder_attention"]),
}


@pytest.fixture
def payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A text that makes a file if it is evaluated; none of that name may be there at the end."""
    monkeypatch.chdir(tmp_path)
    trap = tmp_path / "PWNED"
    yield PAYLOAD.format(trap)
    assert not trap.exists()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_dictionaries(tmp_path / "bin")


def nested(names: List[str], text: str) -> Dict[str, Any]:
    """The options as flat names and as fairseq's nested configuration has them."""
    found: Dict[str, Any] = dict.fromkeys(names, text)
    for side in ("encoder", "decoder"):
        if f"{side}_xformers_att_config" in names:
            found[side] = {"xformers_att_config": text}
    return found


@pytest.mark.parametrize("form", ["cfg", "dict", "args"])
@pytest.mark.parametrize("place", list(PLACES))
def test_a_checkpoint_runs_nothing(
    place: str, form: str, payload: str, data: Path, tmp_path: Path
) -> None:
    arch, flags, names = PLACES[place]
    args = parse(data, arch, *flags)
    path = save_checkpoint(tmp_path / "a.pt", args, nested(names, payload), form=form)
    # fairseq's own parser may find it first, or the option is not read at all: the trap tells.
    with contextlib.suppress(ValueError):
        checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data)})


def test_a_stock_checkpoint_is_told_why(payload: str, data: Path, tmp_path: Path) -> None:
    args = parse(data, "transformer", *SMALL)
    path = save_checkpoint(tmp_path / "a.pt", args, {"adaptive_softmax_cutoff": payload})
    with pytest.raises(ValueError, match=r"__import__.* is no literal"):
        checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data)})


@pytest.mark.parametrize("arch", ["updown_transformer_tiny", "transformer"])
def test_programs_and_interfaces_run_nothing(
    arch: str, payload: str, work: Path, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from fairseq_cli.generate import cli_main as generate
    from fairseq_cli.interactive import cli_main as interactive

    own = work / "bin"
    args = parse(own, arch, *SMALL)
    path = save_checkpoint(tmp_path / "a.pt", args, {"adaptive_softmax_cutoff": payload})
    flags = [str(own), "--user-dir", str(PLUGIN), "--path", str(path), "--cpu"]
    for program in (generate, interactive):
        monkeypatch.setattr(sys, "argv", ["fairseq", *flags])
        with pytest.raises(ValueError, match="is no literal"):
            program()
    with pytest.raises(ValueError, match="is no literal"):
        TransformerModel.from_pretrained(str(tmp_path), "a.pt", str(own))
    with pytest.raises(ValueError, match="is no literal"):
        Summarizer.load(path, own, device="cpu")


def test_a_command_line_runs_nothing(payload: str, data: Path) -> None:
    for optimizer, flag in (
        *(("adam", "--adam-betas"), ("adamax", "--adamax-betas")),
        *(("adafactor", "--adafactor-eps"), ("cpu_adam", "--adam-betas")),
    ):
        args = parse(data, "transformer", *SMALL, "--optimizer", optimizer, flag, payload)
        cfg = convert_namespace_to_omegaconf(args)
        with pytest.raises((ValueError, ImportError), match=r"is no literal|deepspeed"):
            build_optimizer(cfg.optimizer, [torch.nn.Parameter(torch.ones(2))])
    flags = ["data", "--task", "translation", "--arch", "lightconv", "--encoder-glu", payload]
    with pytest.raises(SystemExit):
        options.parse_args_and_arch(options.get_training_parser(), flags)


def test_every_module_of_fairseq_that_evaluates_has_our_literal() -> None:
    """Also those that another version of it has; its examples are programs of their own."""
    found = 0
    for package in (
        Path(fairseq.__file__).parent,
        Path(fairseq.__file__).parents[1] / "fairseq_cli",
    ):
        for path in package.rglob("*.py"):
            if "examples" in path.parts:
                continue
            names = [n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)]
            assert "exec" not in names
            if "eval" in names:
                name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
                assert vars(sys.modules[name])["eval"] is literal, name
                found += 1
    assert found > 10


def test_literals_mean_what_they_meant(data: Path, tmp_path: Path) -> None:
    assert utils.eval_str_list("10000,20000", int) == [10000, 20000]
    assert utils.eval_str_list("5", int) == utils.eval_str_list([5], int) == [5]
    assert utils.eval_str_dict("{'name': 'x'}") == {"name": "x"}
    assert [utils.eval_bool(x) for x in ("True", "0", None)] == [True, False, False]
    assert literal("(0.9, 0.98)") == (0.9, 0.98)
    assert literal(" [2,3]") == [2, 3]
    assert literal("[(4, 3)] * 2 + [(5, 1)]") == [(4, 3), (4, 3), (5, 1)]
    for arch, flags in (
        ("transformer", [*SMALL[:-1], "--adaptive-softmax-cutoff", "8,14"]),  # not shared
        ("fconv", FCONV),
    ):
        args = parse(data, arch, *flags)
        path = save_checkpoint(tmp_path / "a.pt", args, form="args")
        (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)])
        assert sum(parameter.numel() for parameter in model.parameters()) > 1000


@pytest.mark.parametrize("text", ["[1] * 10 ** 9", "(" * 9999, "x", "", "2 if 1 else 3", "f'{1}'"])
def test_what_is_no_literal_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is no literal"):
        literal(text)
