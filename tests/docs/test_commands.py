"""Every command line that the documentation prints names a program that knows its options."""

import contextlib
import importlib
import io
import re
import subprocess
from functools import cache, partial
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, List, Tuple

import pytest
from fairseq import options, registry, tasks
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.initialize import add_defaults
from fairseq.models import build_model
from omegaconf import OmegaConf
from pages import INSTALLED, PAGES, ROOT, command_lines
from toy import toy_task

from fairseq_updown.models.updown_transformer.options import UpdownTransformerFlags

OPTION = re.compile(r"(?<![\w-])--[a-zA-Z0-9][\w-]*")
FAIRSEQ: Dict[str, Callable[[], Any]] = {
    "fairseq-preprocess": options.get_preprocessing_parser,
    "fairseq-train": options.get_training_parser,
    "fairseq-generate": options.get_generation_parser,
    "fairseq-interactive": partial(options.get_generation_parser, interactive=True),
}


def program(words: List[str]) -> List[str]:
    """A command's words from the program's own name on; none if it is no program of ours."""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if words[:1] in (["python"], ["bash"]) and len(words) > 1:
        words = words[1:]
    known = words and (
        words[0] in INSTALLED
        or words[0] in FAIRSEQ
        or words[0].startswith(("scripts/", "examples/", "updown-"))
    )
    return words if known else []


def command_lines_of_ours() -> List[Tuple[str, Tuple[str, ...]]]:
    """(page, words) of every command line of the documentation that runs a program we know."""
    found = []
    for page in PAGES:
        for command in command_lines(page):
            words = program(command)
            if words:
                found.append((str(page.relative_to(ROOT)), tuple(words)))
    return found


@cache
def known_options(name: str) -> FrozenSet[str]:
    """The options of a program."""
    if name in FAIRSEQ:
        return fairseq_options(name)
    if name.endswith(".sh"):
        shown = subprocess.run(
            ["bash", str(ROOT / name), "--help"], capture_output=True, text=True, check=True
        ).stdout
        return frozenset(OPTION.findall(shown))
    shown = help_of(INSTALLED[name] if name in INSTALLED else Path(name).stem)
    entries = re.findall(r"^  (-\S.*?)(?:  .*)?$", shown, re.M)
    return frozenset(OPTION.findall("\n".join(entries)))


def help_of(module: str) -> str:
    """What `main(["--help"])` of a module prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as end:
        importlib.import_module(module).main(["--help"])
    assert end.value.code in (0, None)
    return text.getvalue()


def fairseq_options(name: str) -> FrozenSet[str]:
    """What fairseq's parser knows, with every optimizer, criterion, ..., our task and our model."""
    parser = FAIRSEQ[name]()
    own = [UpdownTransformerFlags, *tasks.TASK_DATACLASS_REGISTRY.values()]
    registered = [
        dataclass
        for entry in registry.REGISTRIES.values()
        for dataclass in entry["dataclass_registry"].values()
    ]
    found = set(parser._option_string_actions)
    if name == "fairseq-preprocess":
        return frozenset(found)
    for dataclass in (*own, *registered):
        if isinstance(dataclass, type) and issubclass(dataclass, FairseqDataclass):
            found |= {"--" + field.replace("_", "-") for field in dataclass.__dataclass_fields__}
    return frozenset(found)


@pytest.mark.parametrize(("page", "words"), command_lines_of_ours())
def test_a_printed_command_line_is_understood(page: str, words: Tuple[str, ...]) -> None:
    name, *arguments = words
    if name not in FAIRSEQ and name not in INSTALLED:
        assert (ROOT / name).is_file(), f"{page}: there is no {name}"
    given = list(arguments)
    if "--" in given:  # what follows goes to another program
        given = given[: given.index("--")]
    known = known_options(name)
    unknown = [word for word in given if word.startswith("--") and word not in known]
    assert unknown == []


# What each of the shell scripts and its files of options runs, besides itself.
SCRIPTS = [ROOT / "scripts/quickstart.sh", *sorted((ROOT / "examples").glob("*/run.sh"))]
SCRIPTS += sorted((ROOT / "examples").glob("*/*.txt"))
RUN = [*FAIRSEQ, *INSTALLED, "scripts/benchmarks/quality.py", "scripts/benchmarks/mixers.py"]
RUN += [f"scripts/corpora/{name}.py" for name in ("rfc", "docstrings", "debian_translation")]
OF_OTHERS = {"--line-buffered", "--input", "--metrics", "--width"}  # of grep and sacrebleu


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: "/".join(path.parts[-2:]))
def test_a_script_gives_options_that_some_program_knows(script: Path) -> None:
    own = [str(script.relative_to(ROOT))] if script.suffix == ".sh" else []
    known = OF_OTHERS.union(*map(known_options, [*RUN, *own]))
    given = {word for word in OPTION.findall(script.read_text()) if not word.endswith("-")}
    assert given <= known


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/config/*.yaml")), ids=str)
def test_the_yaml_of_a_recipe_builds_its_model(path: Path) -> None:
    cfg: Any = OmegaConf.load(path)
    cfg.task.data = "x"
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    known = tasks.TASK_DATACLASS_REGISTRY[cfg.task._name].__dataclass_fields__
    assert set(cfg.task) - {"_name"} <= set(known)
    assert set(cfg.model) - {"_name"} <= set(UpdownTransformerFlags.__dataclass_fields__)
    add_defaults(cfg)
    build_model(cfg.model, toy_task())


@pytest.mark.parametrize("name", INSTALLED)
def test_the_page_of_commands_lists_every_option(name: str) -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (.*)\n((?:(?!##).*\n)*)", text, re.M))
    shown = sections[name]
    if "of model and search" in shown.replace("[", ""):
        shown += sections["Model and search"]
    rows = "\n".join(line.split(" | ")[0] for line in shown.splitlines() if line.startswith("| `"))
    assert set(OPTION.findall(rows)) == known_options(name) - {"--help"}
