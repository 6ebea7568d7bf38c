"""What every test relies on: no network, temporary files and a cache of its own, fixed seeds, and where the real data lies."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before anything of Hugging Face or torch is imported: these are read at import, and child processes inherit them.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # what a failed test wrote stays where it is
_TEMPORARY = tempfile.mkdtemp(prefix="vtfusion-tests-")
os.environ["TMPDIR"] = _TEMPORARY  # what libraries leave behind goes with it
tempfile.tempdir = None  # read TMPDIR anew
os.environ["HF_HOME"] = _TEMPORARY  # one for each worker: neither the user's cache nor a neighbour's is read or filled
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers share the cores

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from transformers import PreTrainedTokenizerBase, set_seed  # noqa: E402

from running import write_colours, write_sample  # noqa: E402
from tokenizers_for_tests import TOKENIZERS  # noqa: E402

# The same examples every time, and no limit that a busy machine would exceed.
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("tests")


def pytest_unconfigure() -> None:
    shutil.rmtree(_TEMPORARY, ignore_errors=True)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    set_seed(0)


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Each of the tiny tokenizers."""
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def bert() -> PreTrainedTokenizerBase:
    """The tiny tokenizer of BERT alone."""
    return TOKENIZERS["bert"]()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `running.write_sample`: the synthetic sample set and tiny encoders."""
    return write_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `running.write_colours`: texts of which only the picture tells the colour, and tiny encoders."""
    folder = tmp_path_factory.mktemp("colours")
    write_colours(folder, train=48, valid=12, test=18)
    return folder


@pytest.fixture
def hide_package(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package look as if it were not installed."""

    def hide(name: str) -> None:
        for module in [name, *(module for module in sys.modules if module.startswith(f"{name}."))]:
            monkeypatch.setitem(sys.modules, module, None)

    return hide


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets. Their terms keep them out of the repository, so most machines have none."""
    named = os.environ.get("VTFUSION_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"VTFUSION_DATA names {named!r}, which is no folder")
    pytest.skip("needs real data: set VTFUSION_DATA to its folder, or lay it at ../shared/data beside the checkout")


@pytest.fixture(scope="session")
def real(shared_data: Path) -> Callable[[str], Path]:
    """A real data set by its name; a test that asks for one that is not here is skipped."""

    def find(name: str) -> Path:
        if not (shared_data / name).is_dir():
            pytest.skip(f"{shared_data / name} is not here")
        return shared_data / name

    return find
