"""What the tests of commands share."""

from pathlib import Path
from typing import Callable

import pytest
from tiny_summarizer import Toy, toy_of, train


@pytest.fixture(scope="session", params=[pytest.param(0, id="trained", marks=pytest.mark.slow)])
def toy(make_once: Callable[[str, Callable[[Path], None]], Path]) -> Toy:
    return toy_of(make_once("summarizer", train))
