"""Invalid options of `interpolate` and `pseudotime` are refused with a one-line message, and no file is changed."""

from __future__ import annotations

import json
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from command_line import run_cli, run_ok
from workbench import DATA, USAGE, Bench, assert_refused

import scvae_cli as scvae
from scvae_cli.errors import DataError

Refusals = dict[str, tuple[int, str, Callable[[Bench], list[object]]]]


def with_times(kind: str) -> Callable[[ad.AnnData], None]:
    """Return a function that gives the cells time points of a kind."""

    def change(adata: ad.AnnData) -> None:
        third = np.arange(adata.n_obs) % 3
        adata.obs["time"] = {
            "words": lambda: pd.Categorical.from_codes(third, ["dawn", "noon", "dusk"]),
            "hours": lambda: third,
            "one": lambda: np.ones(adata.n_obs),
            "gaps": lambda: np.where(third == 0, 4.0, np.nan),
            "dates": lambda: np.asarray(["2024-01-02", "2024-01-03", "2024-01-10"], dtype=object)[third],
            "flags": lambda: third == 0,
        }[kind]()

    return change


def through_times(kind: str, *options: object) -> Callable[[Bench], list[object]]:
    """Arguments of an interpolation through time points of a kind."""

    def arguments(bench: Bench) -> list[object]:
        bench.change(with_times(kind))
        return bench.args("interpolate", "--time-key", "time", *options)

    return arguments


def between_identical_cells(bench: Bench) -> list[object]:
    """Arguments of an interpolation between two cells with the same counts."""
    bench.change(lambda a: setattr(a, "X", a.X[[0, 0, *range(2, a.n_obs)]]))
    return bench.between_cells("cell_001", "cell_002")


def pseudotime(*options: object) -> Callable[[Bench], list[object]]:
    """Arguments of `scvae pseudotime`."""
    return lambda bench: bench.args("pseudotime", *options)


def between_groups(*options: object) -> Callable[[Bench], list[object]]:
    """Arguments of an interpolation from stem cells to mature cells."""
    return lambda bench: bench.between_groups("stem", "mature_1", *options)


def between_cells(*options: object) -> Callable[[Bench], list[object]]:
    """Arguments of an interpolation between two cells."""
    return lambda bench: bench.between_cells("cell_001", "cell_003", *options)


INVALID_INTERPOLATIONS: Refusals = {
    "no ends": (USAGE, "a trajectory needs --groupby", lambda b: b.args("interpolate")),
    "no end": (
        USAGE, "--from was given without --to", lambda b: b.args("interpolate", "--groupby", "batch", "--from", "a")
    ),
    "only between": (USAGE, "--via was given without --from", lambda b: b.args("interpolate", "--via", "stem")),
    "only the last cell": (
        USAGE, "--to-cell was given without --from-cell", lambda b: b.args("interpolate", "--to-cell", "cell_001")
    ),
    "groups and cells": (USAGE, "given twice", between_groups("--from-cell", "cell_001", "--to-cell", "cell_002")),
    "cells through groups": (USAGE, "--via was given without --from", between_cells("--via", "stem")),
    "groups and times": (USAGE, "given twice", between_groups("--time-key", "batch")),
    "cells and times": (USAGE, "given twice", between_cells("--time-key", "batch")),
    "back through itself": (USAGE, "from 'stem' to itself", between_groups("--via", "stem")),
    "between": (DATA, "no cells with obs['cell_type'] == 'limbo'", between_groups("--via", "limbo")),
    "the other cell": (DATA, "no cell called 'nobody'", lambda b: b.between_cells("cell_001", "nobody")),
    "the same position": (DATA, "have the same position", between_identical_cells),
    "kind": (USAGE, "--path is 'curved'", between_groups("--path", "curved")),
    "kind of end": (USAGE, "--endpoint is 'median'", between_groups("--endpoint", "median")),
    "kind of pairs": (USAGE, "--couple is 'yes'", between_groups("--couple", "yes")),
    "one path": (USAGE, "--paths is 1", between_groups("--couple", "ot", "--paths", "1")),
    "too many paths": (USAGE, "--paths is 1001", between_groups("--couple", "ot", "--paths", "1001")),
    "pairs of a cell": (DATA, "'cell_001' is a single cell", between_cells("--couple", "ot")),
    "no times": (DATA, "no column 'time' in obs", lambda b: b.args("interpolate", "--time-key", "time")),
    "times without an order": (DATA, "obs['time'] has no order", through_times("words")),
    "dates": (DATA, "obs['time'] has no order", through_times("dates")),
    "flags": (DATA, "obs['time'] has no order", through_times("flags")),
    "one time": (DATA, "obs['time'] has 1 time point", through_times("one")),
    "one time and gaps": (DATA, "obs['time'] has 1 time point", through_times("gaps")),
    "groups of times": (DATA, "no column 'leiden' in obs", through_times("hours", "--groupby", "leiden")),
    "figure of another kind": (USAGE, "figure.jpeg", between_groups("--plot", "figure.jpeg")),
    "figure without a kind": (USAGE, "figure", between_groups("--plot", "figure")),
    "figure nowhere": (DATA, "nowhere", lambda b: between_groups("--plot", b.folder / "nowhere" / "figure.png")(b)),
    "figure exists": (DATA, "figure.png exists", lambda b: between_groups("--plot", b.file("figure.png", "mine"))(b)),
}  # fmt: skip

INVALID_PSEUDOTIMES: Refusals = {
    "no root": (USAGE, "pseudotime needs --root", pseudotime()),
    "no column": (USAGE, "--root names a group, so --groupby is needed", pseudotime("--root", "stem")),
    "only an end": (USAGE, "pseudotime needs --root", pseudotime("--groupby", "cell_type", "--to", "mature_1")),
    "two roots": (
        USAGE, "the root was given twice",
        pseudotime("--groupby", "batch", "--root", "batch_1", "--root-cell", "cell_001"),
    ),
    "end of no column": (
        USAGE, "--to names groups, so --groupby is needed", pseudotime("--root-cell", "cell_001", "--to", "mature_1")
    ),
    "end twice": (
        USAGE, "'mature_1' was named twice",
        pseudotime("--groupby", "cell_type", "--root", "stem", "--to", "mature_1", "--to", "mature_1"),
    ),
    "end at the root": (
        USAGE, "'stem' was named twice", pseudotime("--groupby", "cell_type", "--root", "stem", "--to", "stem")
    ),
    "column": (DATA, "no column 'leiden' in obs", pseudotime("--groupby", "leiden", "--root", "0")),
    "root": (
        DATA, "no cells with obs['cell_type'] == 'limbo'", pseudotime("--groupby", "cell_type", "--root", "limbo")
    ),
    "end": (
        DATA, "no cells with obs['cell_type'] == 'limbo'",
        pseudotime("--groupby", "cell_type", "--root", "stem", "--to", "limbo"),
    ),
    "root cell": (DATA, "no cell called 'nobody'", pseudotime("--root-cell", "nobody")),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID_INTERPOLATIONS)
def test_invalid_interpolation_is_refused(bench, case):
    code, fragment, arguments = INVALID_INTERPOLATIONS[case]
    assert_refused(bench.folder, arguments(bench), code, fragment)


@pytest.mark.parametrize("case", INVALID_PSEUDOTIMES)
def test_invalid_pseudotime_is_refused(bench, case):
    code, fragment, arguments = INVALID_PSEUDOTIMES[case]
    assert_refused(bench.folder, arguments(bench), code, fragment)


def test_end_at_the_position_of_the_root_is_refused(bench):
    bench.change(lambda a: a.obs.__setitem__("lone", np.where(a.obs_names == "cell_001", "it", "rest")))
    arguments = bench.args("pseudotime", "--root-cell", "cell_001", "--groupby", "lone", "--to", "it")
    assert_refused(bench.folder, arguments, DATA, "the end 'it' has the same position as the root")


@pytest.mark.parametrize("arguments", [["--paths", "many"], ["--seed", "x"], ["--steps", "1"]], ids=" ".join)
def test_invalid_numbers_give_usage_errors(bench, arguments):
    outcome = run_cli(*bench.between_groups("stem", "mature_1", *arguments))
    assert outcome.code == USAGE
    assert outcome.out == ""


def test_invalid_options_are_refused_before_the_computation(bench, monkeypatch):
    monkeypatch.setattr("scvae_cli.model.vae.VAE.encode", None)
    for options in (("--path", "curved"), ("--plot", "figure.gif"), ("--paths", "0"), ("--endpoint", "x")):
        assert_refused(bench.folder, bench.between_groups("stem", "mature_1", *options), USAGE, options[1])


# --- names that lead to the same slots --------------------------------------------------------------------------------


def divide_into_groups(bench: Bench, *names: str) -> None:
    """Divide the cells into groups with the given names."""
    bench.change(lambda a: a.obs.__setitem__("kind", np.asarray(names, dtype=object)[np.arange(a.n_obs) % 3]))


@pytest.mark.parametrize("verb", ["interpolate", "pseudotime", "optimize"])
def test_another_result_in_the_same_slots_is_overwritten_only_with_force(bench, monkeypatch, verb):
    """A second result whose name leads to the same slots is refused before anything is computed."""
    divide_into_groups(bench, "HSC", "Mono CD14+", "Mono CD14++")
    first, second = {
        "interpolate": [("--from", "HSC", "--to", label, "--steps", "5") for label in ("Mono CD14+", "Mono CD14++")],
        "pseudotime": [("--root", label) for label in ("Mono CD14+", "Mono CD14++")],
        "optimize": [
            ("--group", "HSC", "--toward", "gene_01", "--max-length", "0.1", "--name", name) for name in ("up+", "up")
        ],
    }[verb]
    command = bench.args(verb, "--groupby", "kind")
    run_ok(*command, *first)
    with monkeypatch.context() as patch:
        patch.setattr("scvae_cli.model.vae.VAE.encode", None)
        hint = assert_refused(bench.folder, [*command, *second], DATA, "holds another result")
    assert "--name" in hint
    assert "--force" in hint
    run_ok(*command, *first)
    run_ok(*command, *second, "--force")
    run_ok(*command, *second)


def test_results_with_other_intermediate_waypoints_are_different(bench):
    divide_into_groups(bench, "a", "b", "c")
    command = bench.args("interpolate", "--groupby", "kind", "--from", "a", "--to", "c", "--steps", "5")
    run_ok(*command, "--via", "b", "--via", "a")
    other_path = [*command, "--via", "b", "--via", "c", "--via", "b"]
    assert_refused(bench.folder, other_path, DATA, "'interpolate_a_to_c', waypoints 'a', 'b', 'a', 'c'")
    # A name that the user gives is used unchanged.
    run_ok(*command, "--via", "b", "--name", "mine")
    run_ok(*other_path, "--name", "mine")


def test_slot_names_keep_letters_of_any_script(bench):
    divide_into_groups(bench, "HSC", "γδ T", "αβ T")
    for label in ("γδ T", "αβ T"):
        run_ok(*bench.args("interpolate", "--groupby", "kind", "--from", "HSC", "--to", label, "--steps", "5"))
        run_ok(*bench.args("pseudotime", "--groupby", "kind", "--root", label))
    adata = ad.read_h5ad(bench.data)
    names = {f"scvae_pseudotime_{name}" for name in ("HSC_to_γδ_T", "HSC_to_αβ_T", "from_γδ_T", "from_αβ_T")}
    assert names <= set(adata.obs)
    assert len(adata.uns["scvae"]["runs"]) == 4
    run_ok(*bench.args("pseudotime", "--groupby", "kind", "--root", "γδ T"))


@pytest.mark.filterwarnings("ignore::scvae_cli.errors.ScvaeWarning")
def test_another_result_in_memory_is_overwritten_only_with_force(bench):
    adata = ad.read_h5ad(bench.data)
    adata.obs["kind"] = np.asarray(["T+", "T/", "B"], dtype=object)[np.arange(adata.n_obs) % 3]
    scvae.pseudotime(adata, bench.model, root="T+", groupby="kind")
    scvae.interpolate(adata, bench.model, groups=["T+", "B"], groupby="kind", n_steps=5)
    options = {"from_cell": "cell_001", "max_length": 0.1, "toward": "gene_01"}
    scvae.optimize(adata, bench.model, name="up", **options)
    with pytest.raises(DataError, match="'pseudotime_from_T', root 'T\\+'"):
        scvae.pseudotime(adata, bench.model, root="T/", groupby="kind")
    with pytest.raises(DataError, match="holds another result"):
        scvae.interpolate(adata, bench.model, groups=["T/", "B"], groupby="kind", n_steps=5)
    with pytest.raises(DataError, match="holds another result"):
        scvae.optimize(adata, bench.model, name="up+", **options)
    scvae.pseudotime(adata, bench.model, root="T/", groupby="kind", force=True)


# --- valid options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--couple", "ot", "--paths", "5")], ids=" ".join)
def test_interpolate_writes_a_figure(bench, options):
    figure = bench.file("figure.png", "old")
    arguments = bench.between_groups("stem", "mature_1", *options, "--plot", figure, "--force", "--json")
    assert json.loads(run_ok(*arguments).out)["plot"] == str(figure)
    assert figure.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_interpolate_orders_the_waypoints_by_time(bench):
    bench.change(lambda a: a.obs.__setitem__("day", np.asarray([10, 2, 7])[np.arange(a.n_obs) % 3]))
    values = json.loads(run_ok(*bench.args("interpolate", "--time-key", "day", "--groupby", "batch", "--json")).out)
    assert values["waypoints"] == ["2", "7", "10"]
    assert values["name"] == "2_to_7_to_10"
    assert set(values["groups_passed"]) <= {"batch_1", "batch_2"}
    stages = pd.Categorical.from_codes(np.arange(120) % 3, ["old", "new", "late"], ordered=True)
    bench.change(lambda a: a.obs.__setitem__("stage", stages))
    values = json.loads(run_ok(*bench.args("interpolate", "--time-key", "stage", "--json")).out)
    assert values["waypoints"] == ["old", "new", "late"]
    assert set(values["groups_passed"]) <= {"old", "new", "late"}


def test_pseudotime_starts_at_a_root_cell(bench):
    arguments = bench.args(
        "pseudotime", "--root-cell", "cell_001", "--groupby", "cell_type", "--to", "mature_1", "--json"
    )
    values = json.loads(run_ok(*arguments).out)
    assert values["root_cells"] == ["cell_001"]
    assert values["name"] == "from_cell_001"
    assert sum(values["branches"].values()) == values["n_cells"] == 120
    adata = ad.read_h5ad(bench.data)
    assert adata.obs["scvae_pseudotime_from_cell_001"]["cell_001"] == 0
    assert values["slots"] == [
        *(f"obs/scvae_{part}_from_cell_001" for part in ("pseudotime", "distance", "branch")),
        "obsm/scvae_ends_from_cell_001",
    ]


def test_steps_off_the_manifold_give_a_warning(bench, monkeypatch):
    """The limit of the off-manifold score is set to −1, so every position exceeds the limit."""
    monkeypatch.setattr("scvae_cli.tools.trajectory.steps.OFF_MANIFOLD", -1.0)
    outcome = run_ok(*bench.between_groups("stem", "mature_1", "--path", "straight", "--quiet"))
    assert outcome.err.startswith("warning: the trajectory passes stem → ")
    assert "steps 0–49 of 0–49 lie where no cells were observed" in outcome.err
    assert "--path geodesic stays in regions with cells" in outcome.err
