"""Invalid options of `sample` are refused with a one-line message and the right exit code; no file is changed."""

from __future__ import annotations

import pytest
from workbench import DATA, USAGE, assert_refused


@pytest.mark.parametrize(
    ("code", "fragment", "options"),
    [
        (USAGE, "no number of cells", []),
        (USAGE, "--cells is 0", ["-n", "0"]),
        (USAGE, "--cells is -3", ["-n", "-3"]),
        (USAGE, "--from is 'nowhere'", ["-n", "5", "--from", "nowhere"]),
        (USAGE, "--seed is -1", ["-n", "5", "--seed", "-1"]),
        (USAGE, "--seed is 4294967296", ["-n", "5", "--seed", str(2**32)]),
        (USAGE, "--prototype and --cells", ["-n", "5", "--prototype"]),
        (USAGE, "--prototype and --group", ["--prototype", "--groupby", "cell_type", "--group", "stem"]),
        (USAGE, "--prototype and --mean", ["--prototype", "--mean"]),
        (USAGE, "--prototype and --avoid-holes", ["--prototype", "--avoid-holes"]),
        (USAGE, "--groupby was given without --group", ["-n", "5", "--groupby", "cell_type"]),
        (USAGE, "--group was given without --groupby", ["-n", "5", "--group", "stem"]),
        (
            USAGE,
            "--from prior and --group",
            ["-n", "5", "--from", "prior", "--groupby", "cell_type", "--group", "stem"],
        ),
        (USAGE, "--plot needs drawn counts", ["-n", "5", "--mean", "--plot", "new.png"]),
        (USAGE, "does not have the extension of a figure", ["-n", "5", "--plot", "new.doc"]),
        (
            DATA,
            "no cells with obs['cell_type'] == 'nobody'",
            ["-n", "5", "--groupby", "cell_type", "--group", "nobody"],
        ),
        (DATA, "no column 'kind'", ["-n", "5", "--groupby", "kind", "--group", "stem"]),
        (USAGE, "--library is -4", ["-n", "5", "--library", "-4"]),
        (USAGE, "--library is 'deep'", ["-n", "5", "--library", "deep"]),
        (USAGE, "the prototype has no observed library size", ["--prototype", "--library", "observed"]),
        (DATA, "no batch 'batch_1'", ["-n", "5", "--batch-as", "batch_1"]),
    ],
)
def test_invalid_options_are_refused(bench, code, fragment, options):
    assert_refused(bench.folder, bench.args("sample", "-o", bench.folder / "new.h5ad", *options), code, fragment)


def test_sample_requires_a_separate_output_file(bench):
    command = bench.args("sample", "-n", "5")
    assert_refused(bench.folder, command, USAGE, "must be written to a separate file")
    assert_refused(bench.folder, [*command, "-o", bench.data, "--force"], USAGE, "the file of the input cells")
    existing = bench.file("there.h5ad", "mine")
    assert "--force" in assert_refused(bench.folder, [*command, "-o", existing], DATA, "exists")
    assert_refused(bench.folder, [*command, "-o", bench.folder / "new.txt"], DATA, "does not end in .h5ad")
    assert_refused(bench.folder, [*command, "-o", bench.folder / "none" / "new.h5ad"], DATA, "is not a folder")
