"""What every test can rely on: no network, a cache of its own, fixed threads and seeds."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import typed

# Read by the libraries when they are imported, so set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

typed.use()
settings.register_profile("limner", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("limner")


def pytest_collection(session: pytest.Session) -> None:
    """Import in each worker of the whole suite what Limner imports, as it does: diffusers alone would take longer."""
    if hasattr(session.config, "workerinput"):
        from limner.families.load import silence

        silence()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, the demo before all: at the end the other workers would wait for them."""
    folders = ("pipeline", "contracts", "parity")
    order = {folder: number for number, folder in enumerate(folders)}
    items.sort(key=lambda item: (item.path.name != "test_demo.py", order.get(item.path.parent.name, len(folders))))


def pytest_collection_finish() -> None:
    """Let the collector leave alone what the libraries have made when they were imported: a million objects."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point LIMNER_CACHE to a folder that lives as long as the session."""
    folder = tmp_path_factory.mktemp("limner-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Begin every test from the same global seed, where it uses torch or NumPy at all."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def random_base(random_sd15: Path) -> Path:
    """Return the path of a very small base with random weights: SD 1.5's classes, and in the contracts SDXL's too."""
    return random_sd15


@pytest.fixture(scope="session")
def random_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a very small base of SD 1.5's classes with random weights; return its path."""
    from tests.random_base import make_random_base

    return make_random_base(tmp_path_factory.mktemp("random-base"))


@pytest.fixture
def family(random_base: Path):
    """Return the random base afresh, float32, on the CPU."""
    from tests.fresh import fresh

    return fresh(random_base)


@pytest.fixture(scope="session")
def random_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a diffusers folder of SDXL's classes, very small, with random weights; return its path."""
    from limner.families.source import ASSETS
    from tests.random_xl import make_random_xl

    return make_random_xl(tmp_path_factory.mktemp("random-xl"), tokenizer=ASSETS / "tiny" / "tokenizer")


@pytest.fixture(scope="session")
def random_refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the refiner of `random_xl`; return its path."""
    from limner.families.source import ASSETS
    from tests.random_xl import make_random_xl

    folder = tmp_path_factory.mktemp("random-refiner")
    return make_random_xl(folder, refiner=True, tokenizer=ASSETS / "tiny" / "tokenizer")
