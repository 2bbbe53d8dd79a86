"""The finished runs of sweeps without their weights, each sweep as one small file that can be committed.

    python experiments/keep.py runs/table1-small     # adds to experiments/kept/table1-small.jsonl.xz
    python experiments/keep.py --restore runs        # runs/table1-small and all others, as far as they are not there

After `--restore` a folder can be compared and plotted as before, and the sweep passes over what is finished in it, also
on another machine. A line of the file is a file of a run (`xzcat` shows them). The folder's own path is replaced by a
word, so that the restored runs find each other wherever they lie.
"""

from __future__ import annotations

import argparse
import base64
import json
import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.files import write_bytes, write_json, write_sealed_json
from ssfnas_cli.artifacts.run import ALPHAS, METRICS, RunFolder
from ssfnas_cli.artifacts.run_list import find_runs

FOLDER = Path(__file__).resolve().parent / "kept"
SUFFIX = ".jsonl.xz"
HERE = "{runs}"  # stands for the path of the folder of runs
OTHER_PATH = re.compile(r"(?<![\w.}/:])/\w[\w.-]*/\S*")
KEPT = ("*.json", METRICS, ALPHAS)
LEFT_OUT = ("lock.json",)


def keep(runs: Path, file: Path) -> int:
    """Add the finished runs of a folder to a file, in place of those with the same names, and return their number.

    Raises:
        ValueError: a run names a path outside the folder.
    """
    lines = {line["file"]: line for line in read(file)} if file.exists() else {}
    kept = list(finished(runs))
    for run in kept:
        for path in sorted(path for pattern in KEPT for path in run.glob(pattern)):
            if path.name not in LEFT_OUT:
                name = path.relative_to(runs).as_posix()
                lines[name] = {"file": name, **content(path, str(runs.resolve()))}
    text = "".join(f"{json.dumps(lines[name], ensure_ascii=False)}\n" for name in sorted(lines))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, lzma.compress(text.encode()))
    return len(kept)


def finished(runs: Path) -> Iterator[Path]:
    """The folders of searches that are done, and of retrainings that are evaluated, too."""
    for run in find_runs(runs):
        if not isinstance(run, RunFolder) or run.status()["state"] != "done":
            continue
        if run.kind == "search" or run.evaluation() is not None:
            yield run.path


def content(path: Path, root: str) -> dict[str, Any]:
    """What a line says of a file. A sealed one loses its sha256, since the paths in it will be others."""
    if path.name == ALPHAS:
        return {"base64": base64.b64encode(path.read_bytes()).decode()}
    text = path.read_text(encoding="utf-8").replace(root, HERE)
    if found := OTHER_PATH.search(text):
        raise ValueError(f"{path}: names {found[0]}, which is not in the folder")
    if path.suffix != ".json":
        return {"text": text}
    value = json.loads(text)
    return {"json": value, "sealed": value.pop("sha256", None) is not None}


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of a file."""
    return [json.loads(line) for line in lzma.decompress(file.read_bytes()).splitlines()]


def restore(file: Path, runs: Path) -> int:
    """Write the files of runs that are not there yet, and return how many they are."""
    missing = [line for line in read(file) if not (runs / line["file"]).exists()]
    for line in missing:
        path = runs / line["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, line, str(runs.resolve()))
    return len(missing)


def _write(path: Path, line: dict[str, Any], root: str) -> None:
    if "base64" in line:
        write_bytes(path, base64.b64decode(line["base64"]))
    elif "text" in line:
        write_bytes(path, str(line["text"]).replace(HERE, root).encode())
    else:
        value = json.loads(json.dumps(line["json"]).replace(HERE, json.dumps(root)[1:-1]))
        (write_sealed_json if line["sealed"] else write_json)(path, value)


def main() -> int:
    """Keep or restore, as the arguments say."""
    parser = argparse.ArgumentParser(description="Keep the finished runs of a sweep in a file, or restore all kept.")
    parser.add_argument("--restore", action="store_true")
    parser.add_argument("runs", type=Path, help="the folder of a sweep, or with --restore the one of all sweeps")
    runs, is_restore = (arguments := parser.parse_args()).runs, arguments.restore
    for file in sorted(FOLDER.glob(f"*{SUFFIX}")) if is_restore else [FOLDER / f"{runs.name}{SUFFIX}"]:
        name = file.name.removesuffix(SUFFIX)
        count = restore(file, runs / name) if is_restore else keep(runs, file)
        print(f"keep.py: {name}: {count} {'files restored' if is_restore else 'runs kept'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
