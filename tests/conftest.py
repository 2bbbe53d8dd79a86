"""One thread for every test, and small data sets."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The tests' nets are small: threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_digits(tmp_path_factory: pytest.TempPathFactory):
    """Digits, 8x8 and grey: 20 images of the largest class, 10 of the smallest."""
    from ssfnas_cli.data.build import build_dataset
    from ssfnas_cli.settings import MakeDatasetSettings

    folder = tmp_path_factory.mktemp("data") / "digits"
    return build_dataset(MakeDatasetSettings(mu=0.5, max_per_class=20), folder, lambda line: None)
