"""The `ssfnas` application: its commands, and how an error becomes one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from registry import PluginError
from ssfnas_cli import __version__, console
from ssfnas_cli.commands import (
    derive,
    describe,
    evaluate,
    import_genotype,
    make_dataset,
    plot_genotype,
    plugins,
    retrain,
    runs,
    search,
)
from ssfnas_cli.errors import SsfnasError, out_of_memory

# How often a thread that waits for another looks before it sleeps, read by libgomp when torch loads it. Without a limit
# two searches on one machine crawl; with none at all a small one is slowed by waking threads, on an idle machine, too.
WAITING = ("GOMP_SPINCOUNT", "2000")


# Six words of the field. A blank line keeps each on a line of its own.
GLOSSARY = """Words:

supernet: a network whose every edge holds all candidate operations at once, mixed by weights.

alpha: the numbers that those mixing weights are made of; a search learns them.

relaxation: how alphas become weights: softmax (candidates compete) or sigmoid (each stands for itself).

genotype: the operations that are kept, as text: the result of a search.

derive: to read the genotype off the alphas; 'retrain' then trains its network from scratch.

imbalance factor (mu): images of the smallest class over those of the largest; 0.1 is one to ten."""


class _Command(TyperCommand):
    """A subcommand. Once its flags are parsed, the parser prints nothing more, and whoever prints is a stranger."""

    def invoke(self, ctx: Any) -> Any:
        console.divert_prints()
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
    "plot-genotype": plot_genotype,
    "describe": describe,
    "import-genotype": import_genotype,
    "runs": runs,
    "plugins": plugins,
}.items():
    app.command(name, cls=_Command)(module.command)

# What to do where memory has run out
LESS_MEMORY = {
    **dict.fromkeys(
        ("search", "retrain"),
        "take a smaller --batch-size, --channels or --layers, or --precision bf16. "
        "A run half done keeps its checkpoints: the same command goes on where more memory is free",
    ),
    "describe": "take fewer --channels or --layers",
}

# typer carries its own click and exports no such name
ClickException: type[Any] = typer.BadParameter.__mro__[2]


def _show_version(asked: bool) -> None:
    if asked:
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


def run() -> NoReturn:
    """The console script."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(*WAITING)
    console.keep_stdout()
    code = _code()
    _flush()
    sys.exit(code if isinstance(code, int) else 0)


def _code() -> Any:
    """What the command gives back, or the exit code of the error that it raises, which is said in one line."""
    try:
        code = app(standalone_mode=False)
        console.stdout().flush()
        return code
    except (SsfnasError, PluginError) as error:
        return _fail(str(error), getattr(error, "exit_code", 2))
    except ClickException as error:
        return _fail(_usage(error), 2)
    except typer.Abort:
        return _fail("interrupted", 130)
    except typer.Exit as error:
        return error.exit_code
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return _nobody_reads()
    except SystemExit as error:  # typer leaves so where a pipe is closed, and after completion
        return _nobody_reads() if isinstance(error.__context__, BrokenPipeError) else error.code
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """What the machine lacks is the user's to mend; anything else is a bug."""
    mend = LESS_MEMORY.get(next(iter(sys.argv[1:]), ""), "end other programs, or take a machine with more of it")
    if lacking := out_of_memory(error, mend):
        return _fail(str(lacking), lacking.exit_code)
    if isinstance(error, OSError):
        return _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 5)
    with contextlib.suppress(OSError):
        traceback.print_exc()
    return _fail("this is a bug in ssfnas, or in a plugin; the lines above say where", 1)


def _usage(error: Any) -> str:
    """The parser's words as sentences, and where to read on; without a command it has none."""
    message = error.format_message() or "No command given"
    message += "" if message.endswith((".", "?", "!")) else "."
    context = getattr(error, "ctx", None)
    return f"{message} See '{context.command_path} --help'." if context is not None else message


def _nobody_reads() -> int:
    """Whoever reads our output has seen enough: that is no failure, and nothing may be said at exit."""
    console.discard(console.stdout())
    return 0


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print("ssfnas: " + console.printable(" ".join(message.split())), file=sys.stderr, flush=True)
    return code


def _flush() -> None:
    """Python would give another exit code, and complain, where stdout or stderr cannot take what is left."""
    for stream in (console.stdout(), sys.stderr):
        try:
            stream.flush()
        except OSError:
            console.discard(stream)
