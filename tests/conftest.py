"""Options and fixtures of all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from pyro.distributions import is_validation_enabled
from torch.distributions import Distribution

from ebmppl.sampling import choice

mpl.use("Agg")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, and so do their children, and some tests press it; one thread per worker."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the workers share the cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tests that take one")
    parser.addoption("--dtype", default="float64", choices=sorted(DTYPES), help="dtype of the tests that take one")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.config.getoption("--dtype")]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data; without it the tests that use it are skipped, and say so."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("EBMPPL_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} is not there (set EBMPPL_DATA)")
    return folder


@pytest.fixture(autouse=True)
def _auto_is_eager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compile takes seconds: tests of the default back-end stay eager, unless they are about compiled ticks."""
    if "compiled" not in request.fixturenames:
        monkeypatch.setattr(choice, "LEAST_TICKS", sys.maxsize)


@pytest.fixture
def compiled() -> None:
    """For tests in which the back-end "auto" decides as it does for users."""


@pytest.fixture
def one_thread_of_float64() -> Iterator[None]:
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture
def dynamo() -> Iterator[None]:
    """For tests that call ``torch.compile``: its first call turns the validation of distributions off for good."""
    validates = Distribution._validate_args
    yield
    Distribution.set_default_validate_args(validates)


@pytest.fixture(autouse=True)
def _no_global_settings_changed() -> Iterator[None]:
    def settings() -> tuple[object, ...]:
        validation = Distribution._validate_args, Distribution._validate_sample, is_validation_enabled()
        return torch.get_default_dtype(), torch.get_num_threads(), *validation

    before = settings()
    yield
    assert settings() == before
