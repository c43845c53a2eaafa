"""Implementation of `check` for the command line and for Python."""

from __future__ import annotations

from scvae_cli.amounts import amount
from scvae_cli.config import ModelConfig
from scvae_cli.data.covariates import covariate_lines
from scvae_cli.data.formats import open_store
from scvae_cli.data.inspection import Inspection, inspect
from scvae_cli.errors import ConfigError, DataError, one_line
from scvae_cli.question import Outcome, Report, Shell
from scvae_cli.shell_line import shell_line
from scvae_cli.verb import Request

# Factor within which the duration of a training is estimated. On two cores without other load, 26 of 27 trainings took
# between half and twice the estimated time. The 27 trainings used nine data sets of 283 to 4,271 cells
# (`benchmarks/results/time_to_quality.md` and `time_to_quality_unseen.md`).
_UNCERTAINTY = 2.0


def check(request: Request, shell: Shell) -> Outcome:  # noqa: ARG001  # a check takes seconds and shows no progress
    """Report what the data contain, and what training would refuse or warn about.

    Raises
    ------
    DataError
        If a file cannot be opened.
    ConfigError
        If `round` is given with the likelihood "normal", because real numbers are not rounded.
    """
    options = request.options
    of_counts = ModelConfig(likelihood=options.likelihood).of_counts
    if options.round is not None and not of_counts:
        raise ConfigError(
            "--round was given with --likelihood normal", "remove --round, because real numbers are not rounded"
        )
    found = inspect(
        open_store(request.data, genome=options.genome, modality=options.modality),
        layer=options.layer,
        batch_key=options.batch_key,
        continuous_key=options.continuous_key,
        real=not of_counts,
        rounding=options.round,
    )
    return Outcome(value=found, report=lambda: _report(found, request, of_counts=of_counts))


def _report(found: Inspection, request: Request, *, of_counts: bool) -> Report:
    options = request.options
    asked = {
        "layer": options.layer,
        "batch_key": options.batch_key,
        "continuous_key": options.continuous_key,
        "config": request.flags.get("config"),
    }
    asked |= {"round": options.round, "genome": options.genome, "modality": options.modality}
    asked |= {"likelihood": options.likelihood} if options.likelihood != "zinb" else {}
    following = shell_line("train", request.data, **asked)
    return Report(
        facts=found.as_dict(),
        text=_text(found, of_counts=of_counts),
        next_step=following if found.ok else None,
        exit_code=0 if found.ok else DataError.exit_code,
    )


def _text(found: Inspection, *, of_counts: bool) -> str:
    lines = [f"{found.title}: {amount(found.n_cells, 'cell')} × {amount(found.n_genes, 'gene')}"]
    if found.counts_source is not None:
        if found.median_library is None:
            lines.append(f"real numbers: {found.counts_source} ({found.zero_share:.1%} zeros)")
        else:
            library = f"median library size {found.median_library:,.0f} counts"
            lines.append(f"raw counts: {found.counts_source} ({found.zero_share:.1%} zeros, {library})")
        lines += found.notes
        lines.append(f"genes modeled by default: {found.n_genes_modelled:,}")
        lines.append(
            f"training on a CPU: roughly {found.memory_gib} GiB of memory, {_duration(found.cpu_minutes or 0)} on two "
            "cores that nothing else uses"
        )
    else:
        lines.append(f"{'raw counts' if of_counts else 'real numbers'}: none that can be used")
    lines += covariate_lines(found.covariates, named=False)
    if found.obs:
        lines.append("columns that group cells: " + ", ".join(f"{key} ({n})" for key, n in found.obs.items()))
    lines += [f"{finding.level}: {finding.message} ({finding.hint})" for finding in found.findings]
    return "\n".join(map(one_line, lines))


def _duration(minutes: float) -> str:
    """Return the estimated duration of a training as text. The text gives a range, because processors differ in speed.

    >>> _duration(0.3), _duration(5)
    ('9 to 36 s', '2 to 10 min')
    """
    low, high = (minutes / _UNCERTAINTY, minutes * _UNCERTAINTY)
    return f"{60 * low:.0f} to {60 * high:.0f} s" if high < 2 else f"{low:.0f} to {high:.0f} min"
