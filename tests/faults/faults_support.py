"""Cheap `ssfnas` processes, the tiny runs that the tests disturb, and how to compare two of them."""

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from door import write_stand_in

from ssfnas_cli.artifacts.checkpoint import list_checkpoints, load_checkpoint
from ssfnas_cli.artifacts.model import load_model

HERE = Path(__file__).parent
SSFNAS = Path(sys.executable).with_name("ssfnas")
ENVIRON = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

DATASET = ["make-dataset", "--max-per-class", "8", "--mu", "0.5"]
TINY = ["--batch-size", "8", "--threads", "1", "--set", "save_minutes=0.0001", "--set", "kernels=torch"]
SEARCH = [
    *["search", "--data", "data", "--epochs", "3", "--channels", "2", "--layers", "3", *TINY],
    *["--set", "ops=none,max_pool_3x3,skip_connect"],  # the network has weights beside the ops, and is quick
]
WITH_CONVOLUTIONS = ["--set", "ops=none,max_pool_3x3,skip_connect,dil_conv_3x3"]
SHORT = [*SEARCH, "--epochs", "1"]
RETRAIN = [
    *["retrain", "genotype.json", "--data", "data", "--pretrain", "barlow", "--pretrain-epochs", "2"],
    *["--epochs", "2", "--channels", "4", "--layers", "3", *TINY, "--set", "loss.name=ce"],
]


class Result(NamedTuple):
    """How a run ended: exit code (negative: the signal that ended it) and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, parsed."""
        return json.loads(self.out)


class Child(NamedTuple):
    """A process that has been started."""

    pid: int
    out: Path
    err: Path


class Zygote:
    """Client of zygote.py."""

    def __init__(self) -> None:
        self.count = 0
        self._begin()

    def _begin(self) -> None:
        self._said = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  as long as the server lives
        self.process = subprocess.Popen(
            [sys.executable, HERE / "zygote.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, **ENVIRON},
            start_new_session=True,  # no signal to the group of the tests is meant for it
        )

    def _ask(self, request: dict[str, Any]) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        line = ""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            pass
        finally:
            if not line:  # also if a test's time is up: an answer that comes later would be taken for that of another
                self.process.kill()
        assert line, self._last_words()
        answer = json.loads(line)
        if isinstance(answer, str):
            raise OSError(answer)
        return answer

    def _last_words(self) -> str:
        code = self.process.wait(60)
        self._said.seek(0)
        return f"the server of commands ended with {code}: {self._said.read()[-2000:]}"

    def _live(self) -> None:
        """Start another server if this one has ended, so that only one test fails of it."""
        if self.process.poll() is not None:
            warnings.warn(self._last_words(), stacklevel=3)
            self._begin()

    def start(
        self,
        argv: Sequence[str | Path],
        cwd: Path,
        faults: dict[str, Any] | None = None,
        stdin: str | Path = os.devnull,
        stdout: Path | None = None,
        streams: Path | None = None,
        environ: dict[str, str] | None = None,
    ) -> Child:
        """Start `ssfnas argv` with `faults` of injected.py. What it says goes to files in `streams` or `cwd`."""
        self._live()
        self.count += 1
        folder = streams or cwd
        out, err = stdout or folder / f".out-{self.count}", folder / f".err-{self.count}"
        request = {
            "argv": [str(word) for word in argv],
            "cwd": str(cwd),
            "stdin": str(stdin),
            "stdout": str(out),
            "stderr": str(err),
            "faults": faults or {},
            "environ": environ or {},
        }
        return Child(self._ask(request), out, err)

    def wait(self, child: Child) -> Result:
        """How it ended."""
        code = self._ask({"wait": child.pid})
        return Result(
            code,
            child.out.read_text(errors="backslashreplace") if child.out.is_file() else "",
            child.err.read_text(errors="backslashreplace"),
        )

    def run(self, argv: Sequence[str | Path], cwd: Path, faults: dict[str, Any] | None = None, **more: Any) -> Result:
        """Start and wait."""
        return self.wait(self.start(argv, cwd, faults, **more))

    def open_door(self, folder: Path) -> Path:
        """The program `ssfnas` in a folder, which stands in for the installed one (see door.py)."""
        path = Path(tempfile.mkdtemp(prefix="ssfnas-door-"), "socket")  # a socket's path must be short
        self._ask({"door": str(path)})
        return write_stand_in(folder, path)

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(120)


def wait_for(condition: Callable[[], Any], seconds: float = 240) -> None:
    """Poll until something is so; the limit is there for what never comes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def with_faults(faults: dict[str, Any]) -> dict[str, str]:
    """The environment that brings faults into the installed `ssfnas`: those of injected.py that import no torch."""
    paths = [str(HERE / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "SSFNAS_TEST_FAULTS": json.dumps(faults)}


def script(*argv: str, cwd: Path, faults: dict[str, Any] | None = None, **more: Any) -> subprocess.Popen[str]:
    """The installed `ssfnas`, started afresh."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environ = {**os.environ, **ENVIRON, **(with_faults(faults) if faults else {})}
    return subprocess.Popen([SSFNAS, *argv], cwd=cwd, env=environ, **{**streams, **more})


WALL_TIME = ("step_seconds", "peak_memory_bytes", "elapsed_seconds")


def without_wall_time(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what depends on the clock and the machine's load."""
    return {key: value for key, value in line.items() if key not in WALL_TIME}


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without wall time."""
    return [without_wall_time(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_end(run: Path, undisturbed: Path) -> None:
    """Both runs are done, and equal bit for bit in all that does not tell the time or their place."""
    mine, theirs = (load_checkpoint(list_checkpoints(path / "checkpoints")[-1]) for path in (run, undisturbed))
    assert list(mine.tensors) == list(theirs.tensors)
    for name, tensor in theirs.tensors.items():
        assert torch.equal(mine.tensors[name].view(-1), tensor.view(-1)), name
    assert {key: mine.state[key] for key in ("phase", "epoch", "step", "sums")} == {
        key: theirs.state[key] for key in ("phase", "epoch", "step", "sums")
    }
    assert metrics_of(run) == metrics_of(undisturbed)
    assert [without_wall_time(line) for line in mine.state["metrics"]] == metrics_of(undisturbed)
    genotypes = [json.loads((path / "genotype.json").read_text()) for path in (run, undisturbed)]
    for genotype in genotypes:
        genotype["provenance"].pop("run", None)
    assert genotypes[0] == genotypes[1]
    if (undisturbed / "alphas.safetensors").exists():
        assert (run / "alphas.safetensors").read_bytes() == (undisturbed / "alphas.safetensors").read_bytes()
    if (undisturbed / "model.safetensors").exists():
        (mine, card), (theirs, other) = (load_model(path / "model.safetensors") for path in (run, undisturbed))
        assert card == other
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert not (run / "lock.json").exists()
    assert not [path for path in run.rglob(".*")], "half-written files are left"
