"""Small sources on disk and a place for reported lines."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # for `sources_support`


@pytest.fixture
def lines() -> list[str]:
    """What was reported; pass `lines.append`."""
    return []


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes `train/CLASS/*.png` and `test/CLASS/*.png` of random pixels and returns the root."""

    def make(
        train: dict[str, int],
        test: dict[str, int],
        size: tuple[int, int] = (9, 9),
        grey: bool = False,
        name: str = "images",
        **more: dict[str, int],
    ) -> Path:
        root, rng = tmp_path / name, np.random.default_rng(0)
        for split, classes in {"train": train, "test": test, **more}.items():
            for class_name, count in classes.items():
                folder = root / split / class_name
                folder.mkdir(parents=True)
                for number in range(count):
                    shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
                    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number:04d}.png")
        return root

    return make


@pytest.fixture
def make_npz(tmp_path: Path) -> Callable[..., Path]:
    """Writes a MedMNIST-style npz; keyword arguments replace or (None) remove arrays."""

    def make(name: str = "medical.npz", **arrays: np.ndarray | None) -> Path:
        rng = np.random.default_rng(0)
        whole = {}
        for split, count in {"train": 40, "val": 8, "test": 12}.items():
            whole[f"{split}_images"] = rng.integers(0, 256, (count, 12, 12), dtype=np.uint8)
            whole[f"{split}_labels"] = (np.arange(count) % 4)[:, None].astype(np.uint8)
        kept = {key: value for key, value in (whole | arrays).items() if value is not None}
        np.savez_compressed(tmp_path / name, **kept)
        return tmp_path / name

    return make
