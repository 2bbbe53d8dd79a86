"""What a finished search leaves to those that go on from it: its settings and the supernet of its last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from registry.state import under
from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.engine.strategy import build_strategy
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import SearchSettings


class FinishedSearch(NamedTuple):
    """A search that is done, its resolved settings, and all tensors of its last checkpoint, by name."""

    run: RunFolder
    settings: SearchSettings
    tensors: dict[str, Tensor]

    @classmethod
    def open(cls, path: Path) -> FinishedSearch:
        """Open a search for reading.

        Raises:
            InputError: it is no search, is not done, or has no checkpoint.
        """
        return cls.of(RunFolder.open(path, "search"))

    @classmethod
    def of(cls, run: RunFolder) -> FinishedSearch:
        """As `open`, of a folder that is open."""
        run.refuse_unfinished()
        settings = run.settings(SearchSettings).resolve_plugins()
        refuse_without_supernet(run, settings)
        checkpoint = load_newest(run.checkpoints)
        if checkpoint is None:
            raise InputError(f"{run.path}: has no checkpoint, so its supernet is gone: search again, with --force")
        return cls(run, settings, checkpoint.tensors)

    @property
    def supernet(self) -> dict[str, Tensor]:
        """The weights and buffers of the supernet and its heads, under the names of `SearchModel`."""
        return under("model", self.tensors)

    @property
    def layers(self) -> int:
        """The number of cells of that supernet; after a progressive search those of its last stage."""
        return self.settings.layers + build_strategy(self.settings).stages()[-1].more_layers


def refuse_without_supernet(run: RunFolder, settings: SearchSettings) -> None:
    """Refuse a search that has none: its last checkpoint holds the network of its last candidate."""
    if settings.trains_candidates:
        raise InputError(
            f"{run.path}: has trained each candidate by itself (strategy.judge=train), so there is no supernet: name a "
            "search that has one"
        )


class Start(NamedTuple):
    """The search that a run begins with, and the identity of the weights that are taken from it."""

    source: FinishedSearch
    sha256: str

    def identity(self) -> dict[str, Any]:
        """The part of the identity of a run that begins with these weights."""
        return {"init.kind": "supernet", "init.sha256": self.sha256}

    def config(self) -> dict[str, Any]:
        """What config.json records of them."""
        return {"source": str(self.source.run.path.resolve()), "sha256": self.sha256}

    def refuse_as_output(self, path: Path) -> None:
        """Refuse to write a run into the folder of the search that it begins with."""
        if path.resolve() == self.source.run.path.resolve():
            raise UsageError(f"--output {path}: is the search that --init-from names: name another folder")
