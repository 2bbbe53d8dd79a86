"""One thread for every test, signals as a terminal gives them, cheap `ssfnas` processes, and small data sets."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where there is none."""
    need_one = [item for item in items if item.get_closest_marker("gpu")]
    if not need_one:
        return
    import torch

    if not torch.cuda.is_available():
        for item in need_one:
            item.add_marker(pytest.mark.skip(reason="there is no GPU here"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The tests' nets are small: threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def signals_are_not_ignored() -> None:
    """Started by nohup, or as a background job of a script, the tests would hand on signals that are ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def zygote():
    """A server that forks `ssfnas` processes which have imported torch already, one for all tests."""
    from faults_support import Zygote

    server = Zygote()
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_digits(tmp_path_factory: pytest.TempPathFactory):
    """Digits, 8x8 and grey: 20 images of the largest class, 10 of the smallest."""
    from ssfnas_cli.data.build import build_dataset
    from ssfnas_cli.settings import MakeDatasetSettings

    folder = tmp_path_factory.mktemp("data") / "digits"
    return build_dataset(MakeDatasetSettings(mu=0.5, max_per_class=20), folder, lambda line: None)
