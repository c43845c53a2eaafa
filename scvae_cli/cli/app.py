"""The command line `scvae` with all its subcommands; the only module that turns errors into messages and exit codes."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from scvae_cli._version import __version__
from scvae_cli.cli.command import command_of
from scvae_cli.cli.console import print_error, print_warnings
from scvae_cli.cli.streams import replace_streams
from scvae_cli.device import bound_spinning
from scvae_cli.errors import Interrupted, ScvaeError
from scvae_cli.interruption import begin, end_on_signals, exit_code, message
from scvae_cli.memory_limit import out_of_memory
from scvae_cli.options import declarations
from scvae_cli.path_names import name_too_long
from scvae_cli.verbs import VERBS

INTERRUPTED = 130
# Number of new objects after which Python runs a garbage collection. Python's default is some hundreds or thousands.
_GARBAGE = 10_000
# The class of Typer's usage errors. Older versions of Typer take the class from the package click, and later versions
# contain a copy of the class.
UsageProblem: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="scvae",
    help="Train a variational autoencoder on the raw counts of an .h5ad file, and write results into the same file.",
    epilog="Start with: scvae check DATA.h5ad",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command print a message when Ctrl-C ends the command, because Typer alone prints nothing."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo(message(), err=True)
            raise typer.Exit(INTERRUPTED) from None

    return wrapper


for verb in VERBS:
    app.command(verb.name, rich_help_panel=verb.panel)(_interruptible(command_of(verb)))


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"scvae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@functools.cache
def _parser() -> Any:
    """Build the parsers of all subcommands; later calls in the same process return the same parsers."""
    return typer.main.get_command(app)


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    The exit code is 0 for success, 2 for a wrong option, 3 for a problem with the data, 4 for a problem with the model,
    and 5 for a problem with the device. The exit code is 130 after Ctrl-C, 143 after SIGTERM, and 129 after SIGHUP. A
    bug raises an exception, so that Python shows the traceback and exits with 1.
    """
    begin()
    print_warnings()
    try:
        result = _parser().main(args=arguments, prog_name="scvae", standalone_mode=False)
    except ScvaeError as error:
        print_error(error)
        return exit_code() if isinstance(error, Interrupted) else error.exit_code
    except (MemoryError, RuntimeError, OSError, ImportError, SystemError) as error:
        shown = out_of_memory(error) or name_too_long(error)
        if shown is None:
            raise
        print_error(shown)
        return shown.exit_code
    except UsageProblem as error:
        error.show()
        if hint := _hint(error):
            typer.echo(f"hint: {hint}", err=True)
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):  # Ctrl-C while the command line is parsed
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _hint(error: Any) -> str:
    """Say which option names the folder of a model, if the user tried an option that the command does not have."""
    tried, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    verb = next((verb for verb in VERBS if context is not None and verb.name == context.info_name), None)
    if verb is None:
        return ""
    if tried in ("-o", "--output") and verb.trains:
        return f"scvae {verb.name} writes the model into the folder that --model (-m) names"
    if tried in ("-m", "--model") and not verb.takes_model:
        kept = any(declared.name == "models" for declared in declarations(verb.options))
        return f"scvae {verb.name} writes its models into the folder that --models names" if kept else ""
    return ""


def main() -> None:
    """Run the `scvae` command, and exit with its exit code."""
    end_on_signals()
    streams = replace_streams()
    bound_spinning()
    # Most objects of a command, such as compiled functions, are needed until the command ends, so garbage collections
    # find little to free.
    gc.set_threshold(_GARBAGE)
    code = run()
    try:
        streams.finish()
    except ScvaeError as error:
        print_error(error)
        code = code or error.exit_code
    gc.freeze()  # Python does not examine frozen objects again at exit
    sys.exit(code)
