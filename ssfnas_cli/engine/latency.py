"""Measures latencies: of the parts of networks, for a table of them, and of whole networks.

What is measured is the form in which a finished network is used by torch: in evaluation, with its batch normalisations
folded into the convolutions. The latency of a network is predicted as the sum of those of its parts. Additions of maps
are left out of it, and a part that is measured again and again finds its input in the processor's caches.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.artifacts.latency import (
    Conditions,
    Entry,
    LatencyFile,
    cached_table_path,
    read_cached_table,
    read_table,
    write_cached_table,
)
from ssfnas_cli.console import log
from ssfnas_cli.engine.network import describe_network
from ssfnas_cli.errors import InputError
from ssfnas_cli.machine import environment
from ssfnas_cli.nets.folding import fold_in_place
from ssfnas_cli.nets.parts import NetworkShape, Part

WARM_UP, REPEATS = 3, 20
SAVE_EVERY = 10.0  # seconds between the saves of what was measured


def conditions_of(device: torch.device, batch: int) -> Conditions:
    """What a measurement in this process is made with."""
    here = environment()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return Conditions(
        device=name, processor=here["processor"], torch=here["torch"], threads=here["threads"], batch=batch
    )


class LatencyTable:
    """The latencies of parts. It can be asked as any cost of a part.

    Attributes:
        file: its content.
        where: its file, for messages.
    """

    def __init__(self, file: LatencyFile, where: Path):
        self.file, self.where = file, where
        self._found = {_part_of(entry): entry.ms for entry in file.entries}

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """A table that was made before.

        Raises:
            InputError: there is none.
        """
        return cls(read_table(path), path)

    @classmethod
    def measured(
        cls, parts: Iterable[Part], device: torch.device, batch: int = 1, repeats: int = REPEATS, anew: bool = False
    ) -> tuple[LatencyTable, int]:
        """The cache's table of this device and this number of threads, in which no part lacks.

        Args:
            parts: those that are measured if they are not in it, or in any case with `anew`.
            batch: images at a time.
            repeats: measurements of a part, of which the median counts.

        Returns:
            The table, and how many parts were measured.
        """
        conditions = conditions_of(device, batch)
        table = cls(read_cached_table(conditions), cached_table_path(conditions))
        wanted = list(dict.fromkeys(parts))
        missing = wanted if anew else [part for part in wanted if part not in table]
        if missing:
            log.info("measuring the latency of %d parts of networks (%s)", len(missing), conditions.words())
            table._measure(missing, device, repeats)
        return table, len(missing)

    def _measure(self, parts: Sequence[Part], device: torch.device, repeats: int) -> None:
        saved = time.monotonic()
        for part in parts:
            ms = part_latency(part, device, self.file.conditions.batch, repeats)
            self._found[part] = round(ms, 6)
            if time.monotonic() - saved > SAVE_EVERY:
                self._save()
                saved = time.monotonic()
        self._save()

    def _save(self) -> None:
        entries = [_entry_of(part, ms) for part, ms in self._found.items()]
        self.file = LatencyFile(conditions=self.file.conditions, entries=entries)
        write_cached_table(self.file)

    def entries(self) -> list[tuple[Part, Entry]]:
        """The parts, and what the file says of them."""
        return [(_part_of(entry), entry) for entry in self.file.entries]

    def __contains__(self, part: Part) -> bool:
        return part in self._found

    def __call__(self, part: Part) -> float:
        """The milliseconds of a part.

        Raises:
            InputError: the table lacks it.
        """
        if part not in self._found:
            raise InputError(f"{self.where}: lacks {_in_words(part)}")
        return self._found[part]

    def refuse_missing(self, parts: Iterable[Part], shape: NetworkShape, ops: Sequence[str]) -> None:
        """Check that a table which somebody named has all parts.

        Raises:
            InputError: a part lacks. The message has the command that measures all of them.
        """
        missing = [part for part in dict.fromkeys(parts) if part not in self]
        if missing:
            given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in shape._asdict().items())
            others = f" and {len(missing) - 1} other parts" if len(missing) > 1 else ""
            raise InputError(
                f"{self.where}: lacks {_in_words(missing[0])}{others}: measure them there with 'ssfnas latency {given} "
                f"--ops {','.join(ops)} -o FILE'"
            )


def _part_of(entry: Entry) -> Part:
    values = entry.model_dump(exclude={"ms", "options"})
    return Part(**values, options=json.dumps(entry.options, sort_keys=True))


def _entry_of(part: Part, ms: float) -> Entry:
    return Entry(**part._asdict() | {"options": json.loads(part.options)}, ms=ms)


def _in_words(part: Part) -> str:
    name = f"{part.kind} {part.name}".strip()
    return f"{name} ({part.in_channels} to {part.out_channels} channels, side {part.side}, stride {part.stride})"


def part_latency(part: Part, device: torch.device, batch: int = 1, repeats: int = REPEATS) -> float:
    """The median latency of a part in milliseconds."""
    with torch.random.fork_rng(devices=[]):
        module = _FirstOutput(part.build())
    return module_latency(module, (batch, part.in_channels, part.side, part.side), device, repeats)


def network_latency(
    network: Genotype | str, size: dict[str, Any], device: torch.device, batch: int = 1, repeats: int = REPEATS
) -> float:
    """The median latency of a whole network with new weights, in milliseconds.

    Args:
        network: a genotype, or the name of a plain network.
        size: as for `describe_network`.
    """
    size = {"channels": 2, "layers": 3, "stem": "cifar", **size}  # a plain network does not read these
    with torch.random.fork_rng(devices=[]):
        model = describe_network(network, **size, aux=False)
    images = (batch, size["in_channels"], size["image_size"], size["image_size"])
    return module_latency(model, images, device, repeats)


class _FirstOutput(nn.Module):
    """A module that gives one tensor, of a module that may give several."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x)
        return out if isinstance(out, Tensor) else out[0]


def module_latency(module: nn.Module, size: Sequence[int], device: torch.device, repeats: int = REPEATS) -> float:
    """The median latency of a module in milliseconds, in evaluation and with its BNs folded.

    Args:
        module: it gives one tensor. It is moved to the device.
        size: of its input, [N, C, H, W].
        repeats: how many measurements the median is of.
    """
    x = torch.randn(*size, generator=torch.Generator().manual_seed(0))
    x = x.to(device, memory_format=torch.channels_last)
    module = module.to(device).to(memory_format=torch.channels_last).eval()
    folded = copy.deepcopy(module)
    module = folded if fold_in_place(folded, x) else module
    with torch.inference_mode():
        for _ in range(WARM_UP):
            _seconds_of(lambda: module(x), device)
        return 1000 * statistics.median(_seconds_of(lambda: module(x), device) for _ in range(repeats))


def _seconds_of(act: Callable[[], Tensor], device: torch.device) -> float:
    """Wall-clock seconds, until an accelerator has computed what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
