"""Fills pages with what their commands say: tables and pictures of the runs that there are.

    python experiments/fill.py docs/results.md docs/searches.md                  # the runs are in runs/
    python experiments/fill.py docs/results.md docs/searches.md --runs ELSEWHERE

A part of a page begins with `<!-- table: COMMAND -->` or `<!-- picture: WHAT IT SHOWS: COMMAND -->` and ends with
`<!-- end -->`. What is between them is replaced by what the command prints, or by the picture that it draws with
`-o FILE`, and the command. Where a command fails, since its runs are not there yet, what was filled stays as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RUNS = "runs"  # where the commands of a page look for their runs
MARK = re.compile(r"<!-- (?P<kind>table|picture): (?P<text>[^\n]+) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)
EMPTY = "Not there yet:"


class Part(NamedTuple):
    """A part of a page: its kind, what a picture shows, and the command."""

    kind: str
    alt: str
    command: str


def read_part(mark: re.Match[str]) -> Part:
    """The part that a mark begins."""
    if mark["kind"] == "table":
        return Part("table", "", mark["text"])
    alt, _, command = mark["text"].rpartition(": ")
    return Part("picture", alt, command)


def fill(page: Path, runs: Path) -> list[str]:
    """Fill a page, and return what could not be filled, and why."""
    failed: list[str] = []

    def filled(mark: re.Match[str]) -> str:
        part = read_part(mark)
        body, why = fill_part(part, page, runs)
        if why:
            failed.append(f"{part.command}: {why}")
            was_filled = mark["body"].strip() and EMPTY not in mark["body"]
            body = mark["body"] if was_filled else f"{EMPTY} `{part.command}`\n"
        return f"<!-- {mark['kind']}: {mark['text']} -->\n{body}<!-- end -->"

    text = page.read_text(encoding="utf-8")
    page.write_text(MARK.sub(filled, text), encoding="utf-8")
    return failed


def fill_part(part: Part, page: Path, runs: Path) -> tuple[str, str]:
    """What stands on the page: what is printed, or the picture that is drawn; or nothing, and why."""
    words = [re.sub(rf"^{RUNS}(?=/|$)", lambda _: str(runs), word) for word in shlex.split(part.command)]
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with tempfile.TemporaryDirectory() as folder:
        drawn = picture = Path(folder)
        if part.kind == "picture":
            place = words.index("-o") + 1
            picture = ROOT / words[place]
            drawn = drawn / picture.name
            words[place] = str(drawn)
        done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True)
        if done.returncode:
            return "", (done.stderr.splitlines() or [f"it ended with {done.returncode}"])[-1]
        told = done.stdout.strip().replace(str(runs), RUNS)
        if part.kind == "picture":
            picture.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(drawn, picture)
            told = f"![{part.alt}]({os.path.relpath(picture, page.resolve().parent)})"
    return f"{told}\n\nMade by `{part.command}`\n", ""


def main() -> int:
    """Fill the pages that are named."""
    parser = argparse.ArgumentParser(description="Fill pages with what their commands say.")
    parser.add_argument("pages", type=Path, nargs="+", metavar="PAGE")
    parser.add_argument("--runs", type=Path, default=ROOT / RUNS, help="the folder in place of runs/")
    arguments = parser.parse_args()
    for page in arguments.pages:
        for line in fill(page, arguments.runs.resolve()):
            print(f"fill.py: {page}: kept as it was: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
