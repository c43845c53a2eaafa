"""The steps that all commands with a trained model have in common.

The function `ask` opens the data and the model, checks the destination, computes the result, writes the result and
makes the report.

Each command that uses a trained model is a subclass of `Question`. Each subclass implements only the steps in which the
commands differ. A command that needs no trained model is a function that takes a `Request` and a `Shell` and returns an
`Outcome`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast

from scvae_cli.data.atomic import resolved
from scvae_cli.data.slots import DEFAULT_KEY, Slot, SlotNames
from scvae_cli.errors import ConfigError, ModelError, ScvaeError, one_line
from scvae_cli.latent.decoding_batch import far_values
from scvae_cli.options import declarations
from scvae_cli.path_names import refuse_long_name
from scvae_cli.progress import Progress
from scvae_cli.session import Session
from scvae_cli.shell_line import shell_line
from scvae_cli.verb import Request

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AnyOptions = TypeVar("AnyOptions")
Result = TypeVar("Result")


class Shell(Protocol):
    """The interface to the user: the command line or the Python API."""

    @property
    def progress(self) -> Progress:
        """Shows the progress of a computation."""

    def info(self, text: str) -> None:
        """Show a message during a computation."""

    def warn(self, text: str) -> None:
        """Show a warning."""

    def stoppable(self) -> AbstractContextManager[Callable[[], bool]]:
        """Return a context manager in whose block an interruption, such as Ctrl-C, only requests a stop.

        The context manager yields a function that returns whether a stop was requested.
        """


@dataclass(frozen=True, kw_only=True)
class Report:
    """Report on the result of a command, as the command line shows it.

    Parameters
    ----------
    facts
        The result as plain values, for `--json`.
    text
        The result as text.
    next_step
        The command to run next, or None.
    notes
        Remarks shown after the text.
    exit_code
        Exit code of the command. The exit code is not 0 if the result says that the data cannot be used.
    """

    facts: dict[str, Any]
    text: str
    next_step: str | None = None
    notes: Sequence[str] = ()
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a command or of its Python function.

    Parameters
    ----------
    value
        What the Python function returns.
    report
        Function that makes the report for the command line.
    warnings
        Warnings about the result.
    """

    value: Any
    report: Callable[[], Report]
    warnings: Sequence[str] = ()


class Question(Generic[AnyOptions, Result]):
    """Base class of the commands that use a trained model and the cells of one file or AnnData.

    Parameters
    ----------
    session
        The opened data and model.
    request
        The command, its options, the data and the model.
    shell
        Interface to the user, which shows progress and messages.

    Raises
    ------
    ScvaeError
        If the options name groups, cells or genes that do not exist.
    """

    # Options that name additional files, which are written together with the results.
    extra_files: ClassVar[tuple[str, ...]] = ()

    def __init__(self, session: Session, request: Request, shell: Shell) -> None:
        self.session, self.request, self.shell = session, request, shell
        self.options: AnyOptions = request.options
        self.names = SlotNames(key_added=request.options.key_added)
        self.prepare()

    def prepare(self) -> None:
        """Find in the data the groups, cells and genes that the options name."""

    @classmethod
    def check_files(cls, request: Request) -> None:
        """Check that files other than the data can be written, before the data and the model are opened."""

    @property
    def run(self) -> str:
        """Name of this run of the command in the provenance.

        One file can contain the results of two runs of one command if the names of the runs differ.
        """
        return self.request.verb.name

    def planned(self) -> list[str]:
        """Return the paths of the slots that will be written; the paths are known before the computation."""
        raise NotImplementedError

    def made_of(self) -> dict[str, Any] | None:
        """Return the options from which the automatic name of the result was made.

        The function `refuse_another` compares the options of the new result with the options of earlier results. The
        return value is None if the user chose the name of the result, or if results of the command have no names.
        """
        return None

    def answer(self) -> Result:
        """Compute the result of the command."""
        raise NotImplementedError

    def slots(self, result: Result) -> list[Slot]:
        """Return the slots (elements of the AnnData) that will contain the result."""
        slots: list[Slot] = cast("Any", result).slots(self.names)
        return slots

    def record(self, result: Result) -> dict[str, Any]:  # noqa: ARG002  # some commands also record their result
        """Return the options to record in the provenance of the result."""
        recorded: dict[str, Any] = self.request.options.record()
        return recorded

    def files(self, result: Result) -> AbstractContextManager[None]:  # noqa: ARG002  # most commands write no additional files
        """Return a context manager that writes additional files when its `with` block ends.

        The caller writes the results to the .h5ad file inside the `with` block.
        """
        return contextlib.nullcontext()

    def figure(self, result: Result) -> Figure:
        """Make the figure that `--plot` saves."""
        raise NotImplementedError

    def warnings(self, result: Result) -> Sequence[str]:  # noqa: ARG002  # most commands give no warnings
        """Return warnings about the result."""
        return ()

    def facts(self, result: Result) -> dict[str, Any]:
        """Return the result as plain values, for `--json`."""
        raise NotImplementedError

    def text(self, result: Result, facts: dict[str, Any]) -> str:
        """Return the result as text."""
        raise NotImplementedError

    def notes(self, result: Result) -> Sequence[str]:  # noqa: ARG002  # most commands give no remarks
        """Return remarks that are shown after the text of the result."""
        return ()

    def next_step(self, result: Result) -> str | None:  # noqa: ARG002  # most next steps do not depend on the result
        """Return the command that the report suggests to run next, or None."""
        return None

    def on_umap(self, column: str) -> str:
        """Return the scanpy call that draws a column of obs on the UMAP of `scvae embed --umap`, or on scanpy's UMAP.

        If the data have no UMAP, return the command that computes it.
        """
        existing = self.session.store.existing("obsm")
        if self.names.umap not in existing:
            return f'sc.pl.umap(adata, color="{column}")' if "X_umap" in existing else self._embed_umap()
        return f'sc.pl.embedding(adata, basis="{self.names.umap.removeprefix("X_")}", color="{column}")'

    def _embed_umap(self) -> str:
        """Return the command that adds a UMAP of the cells to the file with the results."""
        options, output = self.request.options, self.destination()
        # The output file contains only one genome or modality. The model may be in another folder than the output file.
        parts = {} if output else {"genome": options.genome, "modality": options.modality}
        return shell_line(
            "embed",
            output or self.request.data,
            m=self.request.model_folder if output else self.request.model,
            umap=True,
            layer=options.layer,
            round=options.round,
            **parts,
            allow_missing_genes=options.allow_missing_genes,
            drop_empty=options.drop_empty,
            key_added=None if options.key_added == DEFAULT_KEY else options.key_added,
        )

    def destination(self) -> Path | None:
        """Return the output file, or None if the results are written into the data."""
        output: Path | None = self.request.options.output
        return output

    def check_destination(self) -> None:
        """Check before the computation that `write` will be able to write the result."""
        made_of = self.made_of()
        self.session.check_destination(
            self.planned(),
            names=self.names,
            output=self.destination(),
            force=self.request.options.force,
            run=self.run if made_of is not None or self.run != self.request.verb.name else None,
            made_of=made_of,
        )

    def write(self, result: Result) -> list[str]:
        """Write the result to the output or into the data, and return the paths of its slots."""
        with self.files(result):
            slots = self.slots(result)
            assert {slot.path for slot in slots} <= set(self.planned()), (
                "only slots whose destination was checked are written"
            )
            return self.session.write(
                slots,
                names=self.names,
                run=self.run,
                options=self.record(result),
                output=self.destination(),
                force=self.request.options.force,
            )

    @property
    def writes(self) -> bool:
        """Whether the result is written (True) or returned to the Python caller (False)."""
        return self.request.inplace

    def value(self, result: Result) -> Any:
        """Return the value that the Python function returns."""
        return None if self.writes else result

    def output(self) -> str | None:
        """Return the path of the file that holds the results."""
        return str(self.destination() or self.request.data)

    def places(self, slots: list[str]) -> Sequence[str]:
        """Return texts that tell the user where the results were written."""
        return (f"{', '.join(slots)} of {self.output()}",)

    def report(self, result: Result, slots: list[str]) -> Report:
        """Make the report that the command line shows."""
        options = self.request.options
        files = {name: getattr(options, name) for name in (*self.extra_files, "plot") if hasattr(options, name)}
        facts = {"output": self.output()} | self.facts(result)
        facts |= {"missing_genes": len(self.session.missing_genes)}
        facts |= {name: None if file is None else str(file) for name, file in files.items()}
        facts |= {"slots": slots}
        places = [str(file) for file in files.values() if file is not None]
        places = [one_line(place) for place in (*places, *self.places(slots))]
        return Report(
            facts=facts,
            text="\n".join([self.text(result, facts), *(f"→ {place}" for place in places)]),
            next_step=self.next_step(result),
            notes=self.notes(result),
        )


def ask(kind: type[Question[Any, Any]], request: Request, shell: Shell) -> Outcome:
    """Open the data and the model, compute the result of a command, and write the result with its provenance.

    Raises
    ------
    ScvaeError
        If the data, the model or the options cannot be used, in which case nothing is written.
    """
    options = request.options
    plot = getattr(options, "plot", None)
    for file in (options.output, plot, *(getattr(options, name) for name in kind.extra_files)):
        if file is not None:
            refuse_long_name(file)
    _refuse_shared_files(kind, request)
    if plot is not None:
        from scvae_cli.report.figure_file import check_figure_file

        check_figure_file(plot, force=options.force)
    kind.check_files(request)
    session = Session.open(
        request.data,
        request.model_folder,
        layer=options.layer,
        rounding=options.round,
        genome=options.genome,
        modality=options.modality,
        gene_symbols=options.gene_symbols,
        device=options.device,
        allow_missing_genes=options.allow_missing_genes,
        drop_empty=options.drop_empty,
        subset=getattr(options, "subset", ()),
        needs_batch=options.needs_batch,
        maps_batches=options.maps_batches,
        progress=shell.progress,
    )
    for text in far_values(session.model, getattr(options, "batch_as", None)):
        shell.warn(text)
    question = kind(session, request, shell)
    if question.writes:
        question.check_destination()
    try:
        result = question.answer()
    except (ScvaeError, MemoryError):
        raise
    except Exception as error:  # extreme weights or counts can cause any exception; a bug keeps its traceback
        session.refuse_far_cells()
        # Linear algebra and scikit-learn name NaN or infinite numbers in their messages.
        if any(word in str(error) for word in ("non-finite", "NaN", "infinity")):
            raise ModelError(
                "the model gives numbers that are not finite, so nothing was written", "train the model again"
            ) from error
        raise
    slots: list[str] = []
    if question.writes:
        slots = question.write(result)
    else:
        # The additional files are also written if the result is returned to the caller.
        with question.files(result):
            pass
    if plot is not None:
        from scvae_cli.report.figure_file import save_figure

        save_figure(question.figure(result), plot, force=options.force)
    return Outcome(
        value=question.value(result),
        report=lambda: question.report(result, slots),
        warnings=question.warnings(result),
    )


def _refuse_shared_files(kind: type[Question[Any, Any]], request: Request) -> None:
    """Raise a ConfigError if two options name the same file.

    The results of two options in one file would overwrite each other.
    """
    options = request.options
    taken = [resolved(file) for file in (request.data, options.output) if isinstance(file, Path)]
    spelled = {declared.name: declared.spelled for declared in declarations(type(options))}
    for name in (*kind.extra_files, "plot"):
        file = getattr(options, name, None)
        if file is None:
            continue
        place = resolved(file)
        # Two names can belong to the same file, because of a hard link.
        if place in taken or (place.exists() and any(one.exists() and place.samefile(one) for one in taken)):
            message = f"{spelled[name]} is {file}, which contains the cells or another result"
            raise ConfigError(message, "name another file")
        taken.append(place)


def perform(request: Request, shell: Shell) -> Outcome:
    """Run the command that a request names.

    Raises
    ------
    ScvaeError
        If the data, the model or the options cannot be used.
    """
    work = request.verb.load()
    if isinstance(work, type) and issubclass(work, Question):
        return ask(work, request, shell)
    outcome: Outcome = work(request, shell)
    return outcome
