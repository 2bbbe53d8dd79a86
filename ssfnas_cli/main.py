"""The `ssfnas` application: its commands, and the conversion of errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from registry import REGISTRIES, PluginError
from ssfnas_cli import __version__, console, world
from ssfnas_cli.commands import (
    adjust,
    compare,
    derive,
    describe,
    evaluate,
    export,
    import_genotype,
    latency,
    make_dataset,
    plot,
    plot_genotype,
    plugins,
    predict,
    rank,
    report,
    retrain,
    runs,
    search,
    sweep,
)
from ssfnas_cli.errors import SsfnasError, out_of_memory

# How many times a thread that waits for another one spins before it sleeps. libgomp reads it when torch loads it. With
# libgomp's own limit, two searches on one machine slow each other to a crawl. With no spinning, small networks lose
# time to waking threads even on an idle machine.
SPIN_LIMIT = ("GOMP_SPINCOUNT", "2000")


# Six words of the field. A blank line keeps each on a line of its own.
GLOSSARY = """Words:

supernet: a network whose every edge holds all candidate operations at once, mixed by weights.

alpha: the numbers that those mixing weights are made of; a search learns them.

relaxation: how alphas become weights: softmax (candidates compete) or sigmoid (each stands for itself).

genotype: the operations that are kept, as text: the result of a search.

derive: to read the genotype off the alphas; 'retrain' then trains its network from scratch.

imbalance factor (mu): images of the smallest class over those of the largest; 0.1 is one to ten."""


class _Command(TyperCommand):
    """A subcommand. After its flags are parsed only foreign code prints, so its prints are redirected to stderr."""

    def invoke(self, ctx: Any) -> Any:
        gc.enable()
        console.redirect_prints()
        return super().invoke(ctx)


app = typer.Typer(
    name="ssfnas",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=GLOSSARY,
)
for name, module in {
    "make-dataset": make_dataset,
    "search": search,
    "derive": derive,
    "retrain": retrain,
    "evaluate": evaluate,
    "adjust": adjust,
    "predict": predict,
    "export": export,
    "plot-genotype": plot_genotype,
    "describe": describe,
    "latency": latency,
    "import-genotype": import_genotype,
    "runs": runs,
    "sweep": sweep,
    "compare": compare,
    "plot": plot,
    "rank": rank,
    "report": report,
    "plugins": plugins,
}.items():
    app.command(name, cls=_Command)(module.command)

# What to do if memory has run out, per command
MEMORY_ADVICE = {
    **dict.fromkeys(
        ("search", "retrain"),
        "take a smaller --batch-size, --channels or --layers, or --precision bf16. "
        "An unfinished run keeps its checkpoints: repeat the same command when more memory is free",
    ),
    "describe": "take fewer --channels or --layers",
}

INTERRUPTED = 130  # the exit code that typer, too, gives a command that Ctrl-C has ended

# typer bundles its own click and does not export this class.
ClickException: type[Any] = typer.BadParameter.__mro__[2]


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"ssfnas {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Search network architectures on long-tailed images: DARTS and FairDARTS, supervised or with Barlow Twins.

    From a folder of photos, one folder a class in it, to an evaluated network:

    ssfnas make-dataset --source folder --root photos -o data/photos

    ssfnas search --data data/photos | ssfnas derive - | ssfnas retrain - | ssfnas evaluate -
    """


_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")


def run() -> NoReturn:
    """Entry point of the console script."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(*SPIN_LIMIT)
    os.environ["MPLBACKEND"] = "agg"  # a notebook names one that is not here, and pictures are files
    console.reserve_stdout()
    gc.disable()  # while flags are parsed or help is printed nothing becomes garbage, and looking for it takes time
    code = _run_command()
    _flush_streams()
    sys.exit(code if isinstance(code, int) else 0)


def _run_command() -> Any:
    """Run the command; return its result, or report its error in one line and return the exit code."""
    try:
        if not _has_working_directory():
            return _report("the working directory is gone: go to one that is there (cd)", 5)
        if not world.enter(sys.argv[1:]):
            return 0
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            return _report("interrupted", INTERRUPTED)
        console.stdout().flush()
        world.leave()
        return code
    except (SsfnasError, PluginError) as error:
        return _report(str(error), getattr(error, "exit_code", 2), error)
    except ClickException as error:
        return _report(_usage_message(error), 2)
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _report("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return _reader_closed()
    except SystemExit as error:  # typer raises it if a pipe is closed, and after completion
        return _reader_closed() if isinstance(error.__context__, BrokenPipeError) else error.code
    except Exception as error:
        return _report_unexpected(error)


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _report_unexpected(error: Exception) -> int:
    """Report an exception that no command expects: another rank has failed, a resource lacks, or there is a bug."""
    if world.is_lost(error):
        return _report(f"the ranks cannot send to each other ({' '.join(str(error).split())[:200]})", 5, error)
    advice = MEMORY_ADVICE.get(next(iter(sys.argv[1:]), ""), "end other programs, or use a machine with more memory")
    if lacking := out_of_memory(error, advice):
        return _report(str(lacking), lacking.exit_code, lacking)
    if refused := _NOT_DETERMINISTIC.match(str(error)):
        return _report(
            f"--set deterministic=true: torch has no deterministic way to compute {refused[1]} on a GPU: leave out "
            "what needs it (an op of a search: --set ops=…), or set deterministic=false",
            2,
        )
    if isinstance(error, OSError):
        return _report(f"{error.filename or 'input/output'}: {error.strerror or error}", 5)
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        near = error.object[max(0, error.start - 20) : error.end + 20]
        return _report(f"a name is not UTF-8 text, near '{near}': rename it", 3)
    with contextlib.suppress(OSError):
        traceback.print_exc()
    if plugin := _plugin_in(error):
        told = f"{type(error).__name__}: {error}"
        return _report(f"{told}: a bug in {plugin}, or in how ssfnas calls it; the lines above say where", 1)
    return _report("this is a bug in ssfnas, or in a plugin; the lines above say where", 1)


def _plugin_in(error: Exception) -> str:
    """The plugin of another package in whose code an exception was raised; empty if it was in none."""
    foreign = [plugin for registry in REGISTRIES.values() for plugin in registry.foreign()]
    of_package = {plugin.factory.__module__.partition(".")[0]: plugin for plugin in foreign}
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        if found := of_package.get(str(frame.f_globals.get("__name__")).partition(".")[0]):
            return found.credited
    return ""


def _usage_message(error: Any) -> str:
    """The parser's message as a sentence, followed by the help to read. It is empty if no command was given."""
    message = error.format_message() or "No command given"
    message += "" if message.endswith((".", "?", "!")) else "."
    context = getattr(error, "ctx", None)
    return f"{message} See '{context.command_path} --help'." if context is not None else message


def _reader_closed() -> int:
    """Exit with 0 without a message: the reader of the output has closed the pipe, which is no failure."""
    console.discard(console.stdout())
    world.leave()
    return 0


def _report(message: str, code: int, error: BaseException | None = None) -> int:
    """Print an error, unless another rank does so, and return the exit code."""
    text, code = world.failed(error, console.printable(" ".join(message.split())), code)
    if text:
        with contextlib.suppress(OSError):
            print(f"ssfnas: {text}", file=sys.stderr, flush=True)
    return code


def _flush_streams() -> None:
    """Flush stdout and stderr. If that failed at exit, Python would complain and change the exit code."""
    for stream in (console.stdout(), sys.stderr):
        try:
            stream.flush()
        except OSError:
            console.discard(stream)
