"""Event files, in which TensorBoard reads the metrics of a run. They need the extra `ssfnas[tensorboard]`."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.files import reason, refuse_special_file
from ssfnas_cli.console import log
from ssfnas_cli.errors import UsageError

FOLDER, PREFIX = "tensorboard", "events.out.tfevents."


def refuse_without_tensorboard() -> None:
    """Check that event files can be written, before a run begins.

    Raises:
        UsageError: the package that writes them is not installed.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise UsageError(
            "setting 'tensorboard': needs the package tensorboardX, which is not installed: "
            "pip install 'ssfnas[tensorboard]', or leave the setting out (metrics.csv is always written)"
        )


class EventFile:
    """The event file of a run. Each epoch's numbers are scalars at the step of that epoch, named `PHASE/NAME`.

    A process that goes on with a run begins a new file with all epochs so far, in place of the one before, so that no
    epoch is there twice. A disk that fails costs the event file and not the run.
    """

    def __init__(self, folder: Path):
        from tensorboardX.event_file_writer import EventsWriter

        self._writer: EventsWriter | None = EventsWriter(str(folder / "events"))

    @classmethod
    @contextlib.contextmanager
    def begin(cls, run: Path, lines: Sequence[Mapping[str, Any]]) -> Iterator[EventFile | None]:
        """The event file of a run within this context; None if none can be written, which is a warning.

        Args:
            run: the run's folder.
            lines: the metrics of the epochs so far.
        """
        file = None
        try:
            folder = run / FOLDER
            refuse_special_file(folder, folder=True)
            folder.mkdir(exist_ok=True)
            _delete_older(folder)
            file = cls(folder)
        except OSError as error:
            log.warning("%s: no event files: %s", run / FOLDER, reason(error))
        if file is None:
            yield None
            return
        for line in lines:
            file.add(line, age=lines[-1].get("elapsed_seconds", 0.0) - line.get("elapsed_seconds", 0.0))
        try:
            yield file
        finally:
            file.close()

    def add(self, line: Mapping[str, Any], age: float = 0.0) -> None:
        """Write an epoch, which ended `age` seconds ago."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._writer is None:
            return
        named = {name: value for name, value in line.items() if isinstance(value, int | float) and name != "epoch"}
        values = [Summary.Value(tag=f"{line['phase']}/{name}", simple_value=value) for name, value in named.items()]
        event = Event(wall_time=time.time() - age, step=line["epoch"], summary=Summary(value=values))
        try:
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            log.warning("the event file is given up: %s", reason(error))
            self._writer = None

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()


def _delete_older(folder: Path) -> None:
    """Delete the event files of the processes before; whatever else lies there stays."""
    for path in folder.iterdir():
        if path.name.startswith(PREFIX) and path.is_file() and not path.is_symlink():
            path.unlink()
