"""What holds for every test: no network, few threads per worker, and a deprecation of transformers is an error."""

import functools
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_INFECO_CACHE", str(ROOT / ".out" / "cache"))  # what is measured here is not the user's
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import torch  # noqa: E402
import transformers  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_report_header() -> str:
    """The versions really imported: `make compat` swaps transformers by path."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"transformers {transformers.__version__}, torch {torch.__version__}, device {device}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, none is here"))


# Assisted decoding calls transformers' own generate() in a way that it warns its users of.
TOLD_TO_ITSELF = "Passing `generation_config` together with generation-related arguments"


class DeprecationHandler(logging.Handler):
    """Raises where transformers logs a deprecation, which no warning filter sees."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecat" in record.getMessage() and not record.getMessage().startswith(TOLD_TO_ITSELF):
            raise DeprecationWarning(f"{record.name}: {record.getMessage()}")


def raise_for_transformers(warn):
    """`warnings.warn`, except that a deprecation issued by transformers is raised, whatever line it points at."""

    @functools.wraps(warn)
    def checked(message, category=None, stacklevel=1, *args, **kwargs):
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        is_deprecation = issubclass(kind, FutureWarning | DeprecationWarning)
        if is_deprecation and _library(sys._getframe(1)) == "transformers":
            if _caller_of_transformers() == "peft":
                return None  # what peft still uses is not ours to mend
            raise message if isinstance(message, Warning) else kind(message)
        return warn(message, category, stacklevel + 1, *args, **kwargs)

    return checked


def _library(frame) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]


def _caller_of_transformers() -> str:
    """The library whose call made transformers issue the warning."""
    frame = sys._getframe(2)
    while frame is not None and _library(frame) == "transformers":
        frame = frame.f_back
    return _library(frame) if frame else ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Deprecations of transformers fail the test that met them, also the second test that does."""
    logging.Logger.warning_once.cache_clear()
    handler = DeprecationHandler(logging.WARNING)
    logging.getLogger("transformers").addHandler(handler)
    original, warnings.warn = warnings.warn, raise_for_transformers(warnings.warn)
    try:
        return (yield)
    finally:
        warnings.warn = original
        logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(scope="module")
def one_thread():
    """The reference is many small operations: on a busy machine several threads wait for each other at every one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
