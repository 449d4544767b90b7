"""What holds for all tests: threads, exact softmax, the configurations, what is made once."""

import gc
import os
import sys

# Of each worker and each program that a test starts.
os.environ["OMP_NUM_THREADS"] = os.environ.get("UPDOWN_TEST_THREADS", "1")

from pathlib import Path
from typing import Callable

import pytest
from commands import in_fork, make_corpus, run, train_arguments
from filelock import FileLock
from hypothesis import HealthCheck, settings

# Neither torch nor fairseq is imported here: the process that hands out the tests needs neither.
# Other examples in every run, but where CI is set; a failure prints the line that repeats it.
settings.register_profile(
    "tests",
    deadline=None,
    max_examples=25,
    print_blob=True,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# For a search after a change of the mechanism: `--hypothesis-profile thorough`.
settings.register_profile("thorough", settings.get_profile("tests"), max_examples=500)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def softmax_in_the_dtype_of_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq's own cross-attention takes every softmax in float32, which alone is 1e-7 off in
    float64."""

    def softmax(x, dim, onnx_trace=False):
        return x.softmax(dim=dim) if "float64" in str(x.dtype) else x.softmax(dim=dim).float()

    monkeypatch.setattr("fairseq.utils.softmax", softmax)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a seed of its own is the same in any order and process."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What is imported by now stays: to look through it takes a quarter of a second each time."""
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `configuration` runs with each of them."""
    if "configuration" in metafunc.fixturenames:
        from toy import CONFIGURATIONS

        metafunc.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS)


MakeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """`make_once(name, fill)`: a folder of that name that `fill(folder)` has filled.

    One worker of a run fills it and the others wait: a test must not write into it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, filled = root / f"once-{name}", root / f"once-{name}.filled"
        with FileLock(f"{folder}.lock"):
            if not filled.exists():
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def work(make_once: MakeOnce) -> Path:
    """A folder with a preprocessed toy corpus, see `commands.make_corpus`."""
    return make_once("corpus", make_corpus)


@pytest.fixture(scope="session")
def trained(work: Path, make_once: MakeOnce) -> Path:
    """The folder, with `train.log`, of 30 updates on the toy corpus, over an epoch's end."""

    def train(folder: Path) -> None:
        (folder / "train.log").write_text(run("fairseq-train", *train_arguments(work, folder)))

    return make_once("trained", train)


@pytest.fixture
def in_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainings of `quality.py`, and so of `mixers.py`, are forks."""
    monkeypatch.setattr("quality.run_installed", in_fork)
