"""What holds for all tests: one thread, exact softmax, the configurations, a toy corpus."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from commands import make_corpus
from fairseq import utils as fairseq_utils
from hypothesis import HealthCheck, settings
from toy import CONFIGURATIONS

torch.set_num_threads(int(os.environ.get("UPDOWN_TEST_THREADS", "1")))
# Other examples in every run; a failure prints the line that repeats it.
settings.register_profile(
    "tests",
    deadline=None,
    max_examples=25,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# For a search after a change of the mechanism: `--hypothesis-profile thorough`.
settings.register_profile("thorough", settings.get_profile("tests"), max_examples=500)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def softmax_in_the_dtype_of_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq's own cross-attention takes every softmax in float32, which alone is 1e-7 off."""
    monkeypatch.setattr(
        fairseq_utils, "softmax", lambda x, dim, onnx_trace=False: x.softmax(dim=dim)
    )


@pytest.fixture(params=list(CONFIGURATIONS))
def configuration(request: pytest.FixtureRequest) -> dict:
    return CONFIGURATIONS[request.param]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a preprocessed toy corpus, see `commands.make_corpus`."""
    folder = tmp_path_factory.mktemp("toy")
    make_corpus(folder)
    return folder
