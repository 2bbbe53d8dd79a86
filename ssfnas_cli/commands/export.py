"""`ssfnas export`: from a retrained run to a file that other programs run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssfnas_cli import stop
from ssfnas_cli.commands import common, inputs, outputs
from ssfnas_cli.console import emit, set_verbosity
from ssfnas_cli.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

SUFFIXES = (".onnx", ".pt2")
ONNX = ("onnx", "onnxscript", "onnxruntime")  # the extra `onnx`


def command(
    run: Annotated[str, typer.Argument(help="Retrain run folder, or - for what retrain printed.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.onnx, or .pt2 for torch.export.")],
    data: Annotated[
        str | None,
        typer.Option(help="Data set folder, for images to check the file on, if it moved.", show_default="the run's"),
    ] = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Export a network, from uint8 images to logits, as ONNX or .pt2; the file is run, and kept only if it agrees."""
    stop.install_handlers()
    set_verbosity(quiet, verbose)
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"--output {output}: should end in {' or '.join(SUFFIXES)}")
    if suffix == ".onnx" and (missing := [name for name in ONNX if find_spec(name) is None]):
        raise UsageError(
            f"--output {output}: needs {', '.join(missing)}: pip install 'ssfnas[onnx]', or export to .pt2 instead"
        )
    outputs.refuse_existing(output, force)
    with stop.interruptible("before the end; no file is written"):
        folder = inputs.open_run(run, "retrain", ["ssfnas_cli.deploy.export"])
        from ssfnas_cli.deploy.export import export
        from ssfnas_cli.deploy.model import load_run
        from ssfnas_cli.engine.device import Device

        model = load_run(folder, Device("cpu", 0))
        with outputs.new_file(output, force) as temporary:
            result = export(model, temporary, str(output), data or "")
    emit(result, json, lambda console: _show(console, result))


def _show(console: Console, result: dict[str, Any]) -> None:
    """What a person needs; the rest is in the file's metadata."""
    for name in ("input", "output"):
        facts = result[name]
        shape = ", ".join(map(str, facts["shape"]))
        described = f"{facts['name']}: {facts['type']} [{shape}]{', ' + facts['colour'] if 'colour' in facts else ''}"
        console.print(f"{name:>9}  {described}", soft_wrap=True)
    agreement = f"logits of up to {result['largest_logit']:.3g} differ by at most {result['largest_difference']:.1g}"
    console.print(f"{'checked':>9}  {result['checked_on']}: {agreement}", soft_wrap=True)
    console.print(f"{'file':>9}  {result['path']}, {result['bytes']:,} bytes", soft_wrap=True)
