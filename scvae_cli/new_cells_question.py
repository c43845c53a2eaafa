"""Base class of questions to a model whose answer is new cells.

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
    """A question whose answer is cells that are not in the data. The class of its options inherits `WritingNewCells`.

    If an output file is given, the cells are written to this file. If no output file is given in Python, the cells are
    returned as an AnnData. If no output file is given on the command line, the command ends with an error if
    `needs_file` is True, and only prints a report if `needs_file` is False.
    """

    # Whether the command requires an output file.
    needs_file: ClassVar[bool] = True
    # Title of the progress bar while the cells are computed.
    doing: ClassVar[str] = "Sampling"

    _in_memory: AnnData | None = None

    def new_cells(self, result: Result) -> NewCells:
        """Return the new cells, with all slots except the provenance. The counts of the cells can be read only once."""
        raise NotImplementedError

    @classmethod
    def check_files(cls, request: Request) -> None:
        """Check that the output file can be written, and that it was given if a command needs it.

        Raises the errors of `check_output`, for example if the file already exists.
        """
        output = request.options.output
        if output is not None or (cls.needs_file and request.reported):
            check_output(output, request.data, force=request.options.force)

    @property
    def writes(self) -> bool:
        """Always True: the cells are written to a file or into an AnnData in memory."""
        return True

    def check_destination(self) -> None:
        """Check nothing: a new file has no slots that could be overwritten, and `check_files` has checked the file."""

    def write(self, result: Result) -> list[str]:
        """Write the cells to the output file, or make an AnnData of them if there is none.

        Returns the paths of the slots. A command without an output file writes nothing and returns no paths.
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

    def value(self, result: Result) -> AnnData | None:  # noqa: ARG002  # made while it was written
        """Return the cells as an AnnData, or None if they were written to a file."""
        return self._in_memory

    def output(self) -> str | None:
        """Return the path of the file that the cells were written to, or None."""
        output = self.destination()
        return None if output is None else str(output)

    def places(self, slots: list[str]) -> Sequence[str]:  # noqa: ARG002  # the whole file is new
        """Return the path of the file that the cells were written to; empty if there is no file."""
        output = self.output()
        return () if output is None else (output,)
