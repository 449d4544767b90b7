"""The package as pip installs it, outside of the checkout."""

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, NamedTuple, Set
from zipfile import ZipFile

import pytest
from commands import ENVIRONMENT, PLUGIN, run_installed
from packaging.requirements import Requirement
from pages import INSTALLED
from tiny_summarizer import FLAGS, Toy

pytestmark = pytest.mark.slow

ROOT = PLUGIN.parent
QUIET = ["-q", "--no-deps", "--disable-pip-version-check"]


class Installation(NamedTuple):
    """A wheel, and the folder that it is installed in."""

    wheel: Path
    site: Path

    @property
    def environment(self) -> Dict[str, str]:
        return {**ENVIRONMENT, "PYTHONPATH": str(self.site), "PYTHONSAFEPATH": "1"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Built from a copy of the checkout, in which pip leaves what it makes on the way."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    shutil.copytree(PLUGIN, source / PLUGIN.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = ["python", "-m", "pip"]
    run_installed(*pip, "wheel", *QUIET, "--no-build-isolation", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(source)
    run_installed(*pip, "install", *QUIET, "--target", folder / "site", wheel)
    return Installation(wheel, folder / "site")


def files(folder: Path) -> Set[str]:
    """Those of a package, compiled ones apart."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder.parent).as_posix()
        for path in found
        if "__pycache__" not in path.parts
    }


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(installed: Installation) -> None:
    names = {name for name in ZipFile(installed.wheel).namelist() if ".dist-info/" not in name}
    assert names == files(PLUGIN)
    assert {"fairseq_updown/py.typed", "fairseq_updown/cli/highlight_page.html"} <= names


def test_what_it_requires_is_bounded_and_here(installed: Installation) -> None:
    (distribution,) = metadata.distributions(path=[str(installed.site)])
    required = [Requirement(line) for line in distribution.requires or ()]
    always = [each for each in required if not each.marker]
    assert len(always) > 5
    for each in always:
        assert metadata.version(each.name) in each.specifier
        assert "<" in {bound.operator for bound in each.specifier}, each.name
    assert set(distribution.metadata.get_all("Provides-Extra")) >= {"chart", "dev", "peers"}


def test_it_names_its_own_path_and_fairseq_takes_it(
    installed: Installation, work: Path, trained: Path, tmp_path: Path
) -> None:
    options: Any = dict(cwd=tmp_path, env=installed.environment)
    named = run_installed("python", "-m", "fairseq_updown", **options)
    user_dir = Path(named.strip().splitlines()[-1])
    assert user_dir == installed.site / "fairseq_updown"
    out = run_installed(
        *("fairseq-generate", work / "bin", "--user-dir", user_dir, "--cpu", "--beam", 2),
        *("--path", trained / "checkpoint_last.pt", "--required-batch-size-multiple", 1),
        **options,
    )
    assert sum(line.startswith("H-") for line in out.splitlines()) == 13


HELP = """
import contextlib, runpy, sys
for program in sys.argv[1:]:
    sys.argv = [program, "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_path(program, run_name="__main__")
import fairseq_updown
print(fairseq_updown.__file__)
"""


def test_every_program_explains_itself(installed: Installation, tmp_path: Path) -> None:
    programs = sorted((installed.site / "bin").iterdir())
    assert [program.name for program in programs] == sorted(INSTALLED)
    out = run_installed("python", "-c", HELP, *programs, cwd=tmp_path, env=installed.environment)
    for program in programs:
        assert f"usage: {program.name} " in out
    assert out.strip().endswith(str(installed.site / "fairseq_updown" / "__init__.py"))


def test_the_program_summarizes(installed: Installation, toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text(toy.documents[0])
    options: Any = dict(cwd=tmp_path, env=installed.environment)
    flags = ["--checkpoint", toy.checkpoint, *FLAGS]
    printed = run_installed(
        installed.site / "bin" / "updown-summarize", *flags, "report.txt", **options
    )
    assert printed.strip() == toy.load().summarize([toy.documents[0]])[0].text
