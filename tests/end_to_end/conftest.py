"""The installed console script, and one small world (data set, search, genotype, retrained run) for all tests."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faults_support import Zygote
from PIL import Image

from ssfnas_cli.artifacts.files import cache_folder

SCRIPT = Path(sys.executable).with_name("ssfnas")
SHAPE = ["--epochs", "1", "--channels", "2", "--layers", "3", "--batch-size", "16"]
TINY = [*SHAPE, "--threads", "1", "--set", "kernels=torch"]
OPS = ["--set", "ops=none,max_pool_3x3,skip_connect,dil_conv_3x3"]


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        """What it printed; that stdout holds nothing else is checked by parsing it."""
        return json.loads(self.out)


class Program:
    """Runs `ssfnas` as a user would.

    The commands are forks of a process that has imported torch, since the suite would spend most of its time on
    imports. In a shell, on a terminal and with an environment of its own a stand-in on the PATH asks for the fork (see
    tests/faults/door.py). `installed` starts the console script each time.
    """

    tiny, ops = TINY, OPS

    def __init__(self, cache: Path, zygote: Zygote | None, script: Path = SCRIPT):
        self._zygote, self._cache, self.script = zygote, cache, script
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SSFNAS"))}
        self.environ |= {
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(cache),
            "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}",
        }

    @property
    def installed(self) -> Program:
        """The same, by the console script only."""
        return Program(self._cache, None)

    @property
    def through_the_door(self) -> Program:
        """The same, by the stand-in only, so that the children of a sweep are forks, too."""
        return Program(self._cache, None, self.script)

    def run(self, *argv: str | Path, cwd: Path, stdin: bytes = b"", environ: dict[str, str] | None = None) -> Result:
        """`ssfnas ARGV`."""
        if self._zygote is None or environ is not None:
            return self._run([str(self.script), *map(str, argv)], cwd, stdin, environ)
        given = self._cache / "stdin"
        given.write_bytes(stdin)
        child = self._zygote.start(argv, cwd, stdin=given, streams=self._cache, environ=self.environ)
        code, _, said = self._zygote.wait(child)
        return Result(code, child.out.read_bytes(), said)

    def shell(self, script: str, cwd: Path) -> Result:
        """A line of shell; it fails where any stage of a pipe fails."""
        return self._run(["bash", "-c", f"set -euo pipefail; {script}"], cwd, b"", None)

    def ok(self, *argv: str | Path, cwd: Path, **how: Any) -> Result:
        """`run`, and it must succeed."""
        result = self.run(*argv, cwd=cwd, **how)
        assert result.code == 0, result.err
        return result

    def on_terminal(
        self,
        *argv: str | Path,
        cwd: Path,
        columns: int = 100,
        environ: dict[str, str] | None = None,
        interrupt_at: str | None = None,
    ) -> tuple[Result, str]:
        """How it ends, and what it writes to a terminal of that width by stdout (stderr is piped).

        With `interrupt_at`, Ctrl-C arrives once that text is seen. The program starts with Ctrl-C ignored, as a
        background job of a script does, and has to listen all the same.
        """
        ours, theirs = pty.openpty()
        started = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", str(self.script), *map(str, argv)]
        environ = self.environ | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "20"} | (environ or {})
        process = subprocess.Popen(
            started,
            cwd=cwd,
            env=environ,
            stdin=theirs if interrupt_at else subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
        )
        os.close(theirs)
        shown, ended = b"", False
        while not ended:
            try:
                piece = os.read(ours, 65536) if select.select([ours], [], [], 240)[0] else b""
            except OSError:  # Linux says so when the other side is closed
                piece = b""
            shown, ended = shown + piece, not piece
            if interrupt_at is not None and interrupt_at.encode() in shown:
                process.send_signal(signal.SIGINT)
                interrupt_at = None
        os.close(ours)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
        result = Result(process.returncode, shown, said.decode("utf-8", "backslashreplace"))
        return result, shown.decode().replace("\r", "")

    def refuses(self, code: int, words: list[str], *argv: str | Path, cwd: Path, **how: Any) -> str:
        """The command must print one line with these words, end with this code, and leave every file as it was."""
        before = snapshot(cwd)
        result = self.run(*argv, cwd=cwd, **how)
        lines = result.err.splitlines()
        assert result.code == code, result.err
        assert len(lines) == 1 and lines[0].startswith("ssfnas: "), result.err
        missing = [word for word in words if word not in lines[0]]
        assert not missing, f"{missing} not in: {lines[0]}"
        assert result.out == b""
        assert snapshot(cwd) == before
        return lines[0]

    def _run(self, argv: list[str], cwd: Path, stdin: bytes, environ: dict[str, str] | None) -> Result:
        done = subprocess.run(
            argv, cwd=cwd, input=stdin, capture_output=True, env=self.environ | (environ or {}), timeout=240
        )
        return Result(done.returncode, done.stdout, done.stderr.decode("utf-8", "backslashreplace"))


def snapshot(folder: Path) -> dict[str, str]:
    """Every file, folder and link under a folder, with its content's hash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        is_file = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else "-"
    return found


@pytest.fixture(scope="session")
def ssfnas(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Program:
    """The program, with a cache folder of its own."""
    stand_in = zygote.open_door(tmp_path_factory.mktemp("bin"))
    return Program(tmp_path_factory.mktemp("cache"), zygote, stand_in)


@pytest.fixture(scope="session")
def compiled_kernels() -> Callable[[Path], None]:
    """Copies kernels into a cache folder, as any user has them after the first command, if there are any here."""

    def copy(cache: Path) -> None:
        compiled = cache_folder() / "kernels"
        if compiled.is_dir():
            shutil.copytree(compiled, cache / "ssfnas" / "kernels", dirs_exist_ok=True)

    return copy


@pytest.fixture(scope="session")
def world(ssfnas: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, `search` (two epochs), `genotype.json` and `retrain`, and what each command printed."""
    folder = tmp_path_factory.mktemp("world")
    stages: dict[str, list[str]] = {
        "data": ["make-dataset", "--max-per-class", "12", "--mu", "0.5", "-o", "data"],
        "search": ["search", "--data", "data", *TINY, *OPS, "--epochs", "2", "-o", "search"],
        "derive": ["derive", "search"],
        "retrain": ["retrain", "genotype.json", *TINY, "-o", "retrain"],
    }
    for name, argv in stages.items():
        result = ssfnas.ok(*argv, cwd=folder)
        (folder / f"{name}.stdout").write_bytes(result.out)
        if name == "derive":
            (folder / "genotype.json").write_bytes(result.out)
    return folder


@pytest.fixture
def edited(world: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """Writes a genotype file that differs from the world's by an edit."""

    def write(edit: Callable[[dict[str, Any]], Any]) -> Path:
        genotype = json.loads((world / "genotype.json").read_text())
        edit(genotype)
        path = tmp_path / "edited.json"
        path.write_text(json.dumps(genotype))
        return path

    return write


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An image folder of two classes, with a zero-byte and a truncated image."""
    root = tmp_path / "images"
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dög")):
            (root / split / name).mkdir(parents=True)
            for index in range(4):
                image = Image.new("RGB", (9, 9), (60 * index, 100 * number, 50))
                image.save(root / split / name / f"{index}.png")
    (root / "train" / "cat" / "0.png").write_bytes(b"")
    whole = (root / "train" / "dög" / "3.png").read_bytes()
    (root / "train" / "dög" / "3.png").write_bytes(whole[: len(whole) // 2])
    return root
