"""Base class of the commands that use a trained model to create new cells.

New cells are written to a new file, or returned to the Python caller as an AnnData.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from scvae_cli.data.new_cells import NewCells, check_output
from scvae_cli.progress import counted
from scvae_cli.question import AnyOptions, Question, Result
from scvae_cli.verb import Request

if TYPE_CHECKING:
    from anndata import AnnData


class NewCellsQuestion(Question[AnyOptions, Result]):
    """Base class of the commands whose result is new cells, and whose options inherit from `WritingNewCells`.

    If an output file is given, the cells are written to this file. If no output file is given in Python, the cells are
    returned as an AnnData. On the command line, a missing output file is an error if `needs_file` is True. If
    `needs_file` is False, a command without an output file only prints a report.
    """

    # Whether the command requires an output file.
    needs_file: ClassVar[bool] = True
    # Title of the progress bar while the cells are computed.
    doing: ClassVar[str] = "Sampling"

    _in_memory: AnnData | None = None

    def new_cells(self, result: Result) -> NewCells:
        """Return the new cells with all their annotations except the provenance.

        The counts of the new cells can be read only once.
        """
        raise NotImplementedError

    @classmethod
    def check_files(cls, request: Request) -> None:
        """Check that an output file was given if the command needs one, and that the output file can be written.

        Raises the errors of `check_output`, for example if the output file already exists.
        """
        output = request.options.output
        if output is not None or (cls.needs_file and request.reported):
            check_output(output, request.data, force=request.options.force)

    @property
    def writes(self) -> bool:
        """Always True, because new cells are always written: to a file, or into an AnnData in memory."""
        return True

    def check_destination(self) -> None:
        """Check nothing: a new file has no slots that could be overwritten, and `check_files` has checked the file."""

    def write(self, result: Result) -> list[str]:
        """Write the new cells to the output file, or into a new AnnData if no output file was given.

        Returns the paths of the slots (elements of the AnnData). On the command line, nothing is written and no path is
        returned if no output file was given.
        """
        output = self.destination()
        if output is None and self.request.reported:
            return []
        cells = self.new_cells(result)
        record = self.session.record(
            cells.slots, names=self.names, run=self.run, options=self.record(result), new_file=True
        )
        with self.shell.progress(self.doing, len(cells.cell_names)) as advance:
            blocks: Any = counted(cells.blocks, advance)  # the blocks are sparse or dense matrices
            cells = replace(cells, blocks=blocks, slots=[*cells.slots, record])
            if output is None:
                self._in_memory = cells.in_memory()
            else:
                cells.write(output, force=self.request.options.force)
        return [slot.path for slot in self.slots(result)]

    def value(self, result: Result) -> AnnData | None:  # noqa: ARG002  # `write` has made the AnnData
        """Return the new cells as an AnnData, or None if the cells were written to a file."""
        return self._in_memory

    def output(self) -> str | None:
        """Return the path of the file with the new cells, or None if there is no file."""
        output = self.destination()
        return None if output is None else str(output)

    def places(self, slots: list[str]) -> Sequence[str]:  # noqa: ARG002  # the whole file is new
        """Return a tuple with the path of the file with the new cells. The tuple is empty if there is no file."""
        output = self.output()
        return () if output is None else (output,)
