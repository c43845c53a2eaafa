"""The one driver: a question about cells is opened, checked, answered, written and reported here, for both shells.

A verb that asks a trained model subclasses `Question` and says what is its own. Other verbs are functions of the same
signature as `ask`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast

from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import ConfigError
from scvae_cli.options import declarations
from scvae_cli.progress import Progress
from scvae_cli.session import Session
from scvae_cli.verb import Request

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AnyOptions = TypeVar("AnyOptions")
Result = TypeVar("Result")


class Shell(Protocol):
    """Whoever asks: a terminal, or Python code."""

    @property
    def progress(self) -> Progress:
        """Shows how far a computation is."""

    def info(self, text: str) -> None:
        """Say something worth knowing on the way."""

    def warn(self, text: str) -> None:
        """Say something that may need a change."""

    def stoppable(self) -> AbstractContextManager[Callable[[], bool]]:
        """Until the block ends, an interruption is a request to stop; yields what says whether there was one."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a command line shows of an answer.

    Parameters
    ----------
    facts
        Plain values for pipelines.
    text
        The same for people.
    next_step
        What to run next, or None.
    notes
        Remarks shown after the text.
    exit_code
        0, unless the answer is itself a refusal.
    """

    facts: dict[str, Any]
    text: str
    next_step: str | None = None
    notes: Sequence[str] = ()
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What comes of a request.

    Parameters
    ----------
    value
        What Python code gets.
    report
        Makes what the command line shows.
    warnings
        What the user should doubt.
    """

    value: Any
    report: Callable[[], Report]
    warnings: Sequence[str] = ()


class Question(Generic[AnyOptions, Result]):
    """A question to a trained model about the cells of one file or AnnData.

    Parameters
    ----------
    session
        Data and model, opened.
    request
        What was asked.
    shell
        Shows progress.

    Raises
    ------
    ScvaeError
        When it names groups, cells or genes that are not there.
    """

    # Options that name files which appear together with the results.
    extra_files: ClassVar[tuple[str, ...]] = ()

    def __init__(self, session: Session, request: Request, shell: Shell) -> None:
        self.session, self.request, self.shell = session, request, shell
        self.options: AnyOptions = request.options
        self.names = SlotNames(key_added=request.options.key_added)
        self.prepare()

    def prepare(self) -> None:
        """Look up what the options name in the data."""

    @classmethod
    def check_files(cls, request: Request) -> None:
        """Refuse files that could not be written, before anything is opened."""

    @property
    def run(self) -> str:
        """Name of the run in the provenance; results of one verb that stand side by side differ in it."""
        return self.request.verb.name

    def planned(self) -> list[str]:
        """Paths of the slots that will be written, known before the computation."""
        raise NotImplementedError

    def made_of(self) -> dict[str, Any] | None:
        """For results that have names: the options that a default name was made of (`refuse_another`)."""
        return None

    def answer(self) -> Result:
        """Compute it."""
        raise NotImplementedError

    def slots(self, result: Result) -> list[Slot]:
        """Where the result goes."""
        slots: list[Slot] = cast("Any", result).slots(self.names)
        return slots

    def record(self, result: Result) -> dict[str, Any]:  # noqa: ARG002  # some record what was found
        """Options, as the provenance has them."""
        recorded: dict[str, Any] = self.request.options.record()
        return recorded

    def files(self, result: Result) -> AbstractContextManager[None]:  # noqa: ARG002  # most have none
        """Other files, which appear when the block, in which the results are written, is left."""
        return contextlib.nullcontext()

    def figure(self, result: Result) -> Figure:
        """The figure of `--plot`."""
        raise NotImplementedError

    def warnings(self, result: Result) -> Sequence[str]:  # noqa: ARG002  # most have none
        """What to doubt."""
        return ()

    def facts(self, result: Result) -> dict[str, Any]:
        """The result as plain values, for `--json`."""
        raise NotImplementedError

    def text(self, result: Result, facts: dict[str, Any]) -> str:
        """The result for people."""
        raise NotImplementedError

    def notes(self, result: Result) -> Sequence[str]:  # noqa: ARG002  # most have none
        """Remarks shown after the text."""
        return ()

    def next_step(self, result: Result) -> str | None:  # noqa: ARG002  # most know it beforehand
        """What to run next."""
        return None

    def destination(self) -> Path | None:
        """The file that results go to, or None for the data's own."""
        output: Path | None = self.request.options.output
        return output

    def check_destination(self) -> None:
        """Refuse before the computation what `write` would refuse after it."""
        self.session.check_destination(
            self.planned(),
            names=self.names,
            output=self.destination(),
            force=self.request.options.force,
            run=self.run if self.run != self.request.verb.name else None,
            made_of=self.made_of(),
        )

    def write(self, result: Result) -> list[str]:
        """Write the result where it belongs; returns the paths of its slots."""
        with self.files(result):
            slots = self.slots(result)
            assert {slot.path for slot in slots} <= set(self.planned()), "what is written was checked before"
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
        """Whether the result is written; a caller in Python may want it back instead."""
        return self.request.inplace

    def value(self, result: Result) -> Any:
        """What Python code gets."""
        return None if self.writes else result

    def output(self) -> str | None:
        """The file that holds the results."""
        return str(self.destination() or self.request.data)

    def places(self, slots: list[str]) -> Sequence[str]:
        """Where the results are, for people."""
        return (f"{', '.join(slots)} of {self.output()}",)

    def report(self, result: Result, slots: list[str]) -> Report:
        """What the command line shows."""
        options = self.request.options
        files = {name: getattr(options, name) for name in (*self.extra_files, "plot") if hasattr(options, name)}
        facts = {"output": self.output()} | self.facts(result)
        facts |= {"missing_genes": len(self.session.missing_genes)}
        facts |= {name: None if file is None else str(file) for name, file in files.items()}
        facts |= {"slots": slots}
        places = [str(file) for file in files.values() if file is not None]
        places += self.places(slots)
        return Report(
            facts=facts,
            text="\n".join([self.text(result, facts), *(f"→ {place}" for place in places)]),
            next_step=self.next_step(result),
            notes=self.notes(result),
        )


def ask(kind: type[Question[Any, Any]], request: Request, shell: Shell) -> Outcome:
    """Open data and model, answer a question, write the answer and where it came from.

    Raises
    ------
    ScvaeError
        For data, models or options that cannot be used; nothing is written then.
    """
    options = request.options
    plot = getattr(options, "plot", None)
    _refuse_shared_files(kind, request)
    if plot is not None:
        from scvae_cli.report.figure_file import check_figure_file

        check_figure_file(plot, force=options.force)
    kind.check_files(request)
    session = Session.open(
        request.data,
        request.model_folder,
        layer=options.layer,
        gene_symbols=options.gene_symbols,
        device=options.device,
        allow_missing_genes=options.allow_missing_genes,
        drop_empty=options.drop_empty,
        needs_batch=options.needs_batch,
        progress=shell.progress,
    )
    question = kind(session, request, shell)
    if question.writes:
        question.check_destination()
    result = question.answer()
    slots: list[str] = []
    if question.writes:
        slots = question.write(result)
    else:
        # Files that were asked for are written also when the caller gets the result.
        with question.files(result):
            pass
    if plot is not None:
        from scvae_cli.report.figure_file import save_figure

        save_figure(question.figure(result), plot)
    return Outcome(
        value=question.value(result),
        report=lambda: question.report(result, slots),
        warnings=question.warnings(result),
    )


def _refuse_shared_files(kind: type[Question[Any, Any]], request: Request) -> None:
    """Refuse an additional file that is the data, the output, or another additional file: it would be overwritten."""
    options = request.options
    taken = {file.resolve() for file in (request.data, options.output) if isinstance(file, Path)}
    spelled = {declared.name: declared.spelled for declared in declarations(type(options))}
    for name in (*kind.extra_files, "plot"):
        file = getattr(options, name, None)
        if file is None:
            continue
        if file.resolve() in taken:
            message = f"{spelled[name]} is {file}, which contains the cells or another result"
            raise ConfigError(message, "name another file")
        taken.add(file.resolve())


def perform(request: Request, shell: Shell) -> Outcome:
    """Do what a request asks for.

    Raises
    ------
    ScvaeError
        As for `ask`.
    """
    work = request.verb.load()
    if isinstance(work, type) and issubclass(work, Question):
        return ask(work, request, shell)
    outcome: Outcome = work(request, shell)
    return outcome
