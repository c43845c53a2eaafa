"""Invalid options of `interpolate` and `pseudotime` are refused with a one-line message, and no file is changed."""

from __future__ import annotations

import json
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from command_line import run_cli, run_well
from workbench import DATA, USAGE, Bench, refused

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


def timed(kind: str, *options: object) -> Callable[[Bench], list[object]]:
    """Arguments of an interpolation through time points of a kind."""

    def arguments(bench: Bench) -> list[object]:
        bench.changed(with_times(kind))
        return bench.ask("interpolate", "--time-key", "time", *options)

    return arguments


def twins(bench: Bench) -> list[object]:
    """Arguments of an interpolation between two cells with the same counts."""
    bench.changed(lambda a: setattr(a, "X", a.X[[0, 0, *range(2, a.n_obs)]]))
    return bench.hop("cell_001", "cell_002")


def order(*options: object) -> Callable[[Bench], list[object]]:
    """Arguments of `scvae pseudotime`."""
    return lambda bench: bench.ask("pseudotime", *options)


def route(*options: object) -> Callable[[Bench], list[object]]:
    """Arguments of an interpolation from stem cells to mature cells."""
    return lambda bench: bench.walk("stem", "mature_1", *options)


def hop(*options: object) -> Callable[[Bench], list[object]]:
    """Arguments of an interpolation between two cells."""
    return lambda bench: bench.hop("cell_001", "cell_003", *options)


ROUTES: Refusals = {
    "no ends": (USAGE, "a trajectory needs --groupby", lambda b: b.ask("interpolate")),
    "no end": (
        USAGE, "--from was given without --to", lambda b: b.ask("interpolate", "--groupby", "batch", "--from", "a")
    ),
    "only between": (USAGE, "--via was given without --from", lambda b: b.ask("interpolate", "--via", "stem")),
    "only the last cell": (
        USAGE, "--to-cell was given without --from-cell", lambda b: b.ask("interpolate", "--to-cell", "cell_001")
    ),
    "groups and cells": (USAGE, "given twice", route("--from-cell", "cell_001", "--to-cell", "cell_002")),
    "cells through groups": (USAGE, "--via was given without --from", hop("--via", "stem")),
    "groups and times": (USAGE, "given twice", route("--time-key", "batch")),
    "cells and times": (USAGE, "given twice", hop("--time-key", "batch")),
    "back through itself": (USAGE, "from 'stem' to itself", route("--via", "stem")),
    "between": (DATA, "no cells with obs['cell_type'] == 'limbo'", route("--via", "limbo")),
    "the other cell": (DATA, "no cell called 'nobody'", lambda b: b.hop("cell_001", "nobody")),
    "the same position": (DATA, "have the same position", twins),
    "kind": (USAGE, "--path is 'curved'", route("--path", "curved")),
    "kind of end": (USAGE, "--endpoint is 'median'", route("--endpoint", "median")),
    "kind of pairs": (USAGE, "--couple is 'yes'", route("--couple", "yes")),
    "one path": (USAGE, "--paths is 1", route("--couple", "ot", "--paths", "1")),
    "too many paths": (USAGE, "--paths is 1001", route("--couple", "ot", "--paths", "1001")),
    "pairs of a cell": (DATA, "'cell_001' is a single cell", hop("--couple", "ot")),
    "no times": (DATA, "no column 'time' in obs", lambda b: b.ask("interpolate", "--time-key", "time")),
    "times without an order": (DATA, "obs['time'] has no order", timed("words")),
    "dates": (DATA, "obs['time'] has no order", timed("dates")),
    "flags": (DATA, "obs['time'] has no order", timed("flags")),
    "one time": (DATA, "obs['time'] has 1 time point", timed("one")),
    "one time and gaps": (DATA, "obs['time'] has 1 time point", timed("gaps")),
    "groups of times": (DATA, "no column 'leiden' in obs", timed("hours", "--groupby", "leiden")),
    "figure of another kind": (USAGE, "figure.jpeg", route("--plot", "figure.jpeg")),
    "figure without a kind": (USAGE, "figure", route("--plot", "figure")),
    "figure nowhere": (DATA, "nowhere", lambda b: route("--plot", b.folder / "nowhere" / "figure.png")(b)),
    "figure exists": (DATA, "figure.png exists", lambda b: route("--plot", b.file("figure.png", "mine"))(b)),
}  # fmt: skip

ORDERS: Refusals = {
    "no root": (USAGE, "pseudotime needs --root", order()),
    "no column": (USAGE, "--root names a group, so --groupby is needed", order("--root", "stem")),
    "only an end": (USAGE, "pseudotime needs --root", order("--groupby", "cell_type", "--to", "mature_1")),
    "two roots": (
        USAGE, "the root was given twice", order("--groupby", "batch", "--root", "batch_1", "--root-cell", "cell_001")
    ),
    "end of no column": (
        USAGE, "--to names groups, so --groupby is needed", order("--root-cell", "cell_001", "--to", "mature_1")
    ),
    "end twice": (
        USAGE, "'mature_1' was named twice",
        order("--groupby", "cell_type", "--root", "stem", "--to", "mature_1", "--to", "mature_1"),
    ),
    "end at the root": (
        USAGE, "'stem' was named twice", order("--groupby", "cell_type", "--root", "stem", "--to", "stem")
    ),
    "column": (DATA, "no column 'leiden' in obs", order("--groupby", "leiden", "--root", "0")),
    "root": (DATA, "no cells with obs['cell_type'] == 'limbo'", order("--groupby", "cell_type", "--root", "limbo")),
    "end": (
        DATA, "no cells with obs['cell_type'] == 'limbo'",
        order("--groupby", "cell_type", "--root", "stem", "--to", "limbo"),
    ),
    "root cell": (DATA, "no cell called 'nobody'", order("--root-cell", "nobody")),
}  # fmt: skip


@pytest.mark.parametrize("case", ROUTES)
def test_trajectories_that_cannot_be_meant(bench, case):
    code, fragment, arguments = ROUTES[case]
    refused(bench.folder, arguments(bench), code, fragment)


@pytest.mark.parametrize("case", ORDERS)
def test_orders_that_cannot_be_meant(bench, case):
    code, fragment, arguments = ORDERS[case]
    refused(bench.folder, arguments(bench), code, fragment)


def test_an_end_that_is_the_root_cell(bench):
    bench.changed(lambda a: a.obs.__setitem__("lone", np.where(a.obs_names == "cell_001", "it", "rest")))
    arguments = bench.ask("pseudotime", "--root-cell", "cell_001", "--groupby", "lone", "--to", "it")
    refused(bench.folder, arguments, DATA, "the end 'it' has the same position as the root")


@pytest.mark.parametrize("arguments", [["--paths", "many"], ["--seed", "x"], ["--steps", "1"]], ids=" ".join)
def test_numbers_that_are_none(bench, arguments):
    outcome = run_cli(*bench.walk("stem", "mature_1", *arguments))
    assert outcome.code == USAGE
    assert outcome.out == ""


def test_a_refused_trajectory_computes_nothing(bench, monkeypatch):
    monkeypatch.setattr("scvae_cli.model.vae.VAE.encode", None)
    for options in (("--path", "curved"), ("--plot", "figure.gif"), ("--paths", "0"), ("--endpoint", "x")):
        refused(bench.folder, bench.walk("stem", "mature_1", *options), USAGE, options[1])


# --- names that lead to the same slots --------------------------------------------------------------------------------


def renamed(bench: Bench, *names: str) -> None:
    """Divide the cells into groups with the given names."""
    bench.changed(lambda a: a.obs.__setitem__("kind", np.asarray(names, dtype=object)[np.arange(a.n_obs) % 3]))


@pytest.mark.parametrize("verb", ["interpolate", "pseudotime", "optimize"])
def test_another_result_is_not_replaced(bench, monkeypatch, verb):
    """A second result whose name leads to the same slots is refused before anything is computed."""
    renamed(bench, "HSC", "Mono CD14+", "Mono CD14++")
    first, second = {
        "interpolate": [("--from", "HSC", "--to", label, "--steps", "5") for label in ("Mono CD14+", "Mono CD14++")],
        "pseudotime": [("--root", label) for label in ("Mono CD14+", "Mono CD14++")],
        "optimize": [
            ("--group", "HSC", "--toward", "gene_01", "--max-length", "0.1", "--name", name) for name in ("up+", "up")
        ],
    }[verb]
    ask = bench.ask(verb, "--groupby", "kind")
    run_well(*ask, *first)
    with monkeypatch.context() as patch:
        patch.setattr("scvae_cli.model.vae.VAE.encode", None)
        hint = refused(bench.folder, [*ask, *second], DATA, "holds another result")
    assert "--name" in hint
    assert "--force" in hint
    run_well(*ask, *first)
    run_well(*ask, *second, "--force")
    run_well(*ask, *second)


def test_waypoints_in_between_count_too(bench):
    renamed(bench, "a", "b", "c")
    ask = bench.ask("interpolate", "--groupby", "kind", "--from", "a", "--to", "c", "--steps", "5")
    run_well(*ask, "--via", "b", "--via", "a")
    detour = [*ask, "--via", "b", "--via", "c", "--via", "b"]
    refused(bench.folder, detour, DATA, "'interpolate_a_to_c', waypoints ['a', 'b', 'a', 'c']")
    # A name that the user gives is used unchanged.
    run_well(*ask, "--via", "b", "--name", "mine")
    run_well(*detour, "--name", "mine")


def test_letters_of_any_script_stay(bench):
    renamed(bench, "HSC", "γδ T", "αβ T")
    for label in ("γδ T", "αβ T"):
        run_well(*bench.ask("interpolate", "--groupby", "kind", "--from", "HSC", "--to", label, "--steps", "5"))
        run_well(*bench.ask("pseudotime", "--groupby", "kind", "--root", label))
    adata = ad.read_h5ad(bench.data)
    names = {f"scvae_pseudotime_{name}" for name in ("HSC_to_γδ_T", "HSC_to_αβ_T", "from_γδ_T", "from_αβ_T")}
    assert names <= set(adata.obs)
    assert len(adata.uns["scvae"]["runs"]) == 4
    run_well(*bench.ask("pseudotime", "--groupby", "kind", "--root", "γδ T"))


@pytest.mark.filterwarnings("ignore::scvae_cli.errors.ScvaeWarning")
def test_another_result_in_memory_is_not_replaced(bench):
    adata = ad.read_h5ad(bench.data)
    adata.obs["kind"] = np.asarray(["T+", "T/", "B"], dtype=object)[np.arange(adata.n_obs) % 3]
    scvae.pseudotime(adata, bench.model, root="T+", groupby="kind")
    scvae.interpolate(adata, bench.model, groups=["T+", "B"], groupby="kind", n_steps=5)
    up = {"from_cell": "cell_001", "max_length": 0.1, "toward": "gene_01"}
    scvae.optimize(adata, bench.model, name="up", **up)
    with pytest.raises(DataError, match="'pseudotime_from_T', root 'T\\+'"):
        scvae.pseudotime(adata, bench.model, root="T/", groupby="kind")
    with pytest.raises(DataError, match="holds another result"):
        scvae.interpolate(adata, bench.model, groups=["T/", "B"], groupby="kind", n_steps=5)
    with pytest.raises(DataError, match="holds another result"):
        scvae.optimize(adata, bench.model, name="up+", **up)
    scvae.pseudotime(adata, bench.model, root="T/", groupby="kind", force=True)


# --- and those that can -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--couple", "ot", "--paths", "5")], ids=" ".join)
def test_a_trajectory_is_drawn(bench, options):
    figure = bench.file("figure.png", "old")
    arguments = bench.walk("stem", "mature_1", *options, "--plot", figure, "--force", "--json")
    assert json.loads(run_well(*arguments).out)["plot"] == str(figure)
    assert figure.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_trajectory_through_times(bench):
    bench.changed(lambda a: a.obs.__setitem__("day", np.asarray([10, 2, 7])[np.arange(a.n_obs) % 3]))
    values = json.loads(run_well(*bench.ask("interpolate", "--time-key", "day", "--groupby", "batch", "--json")).out)
    assert values["waypoints"] == ["2", "7", "10"]
    assert values["name"] == "2_to_7_to_10"
    assert set(values["groups_passed"]) <= {"batch_1", "batch_2"}
    stages = pd.Categorical.from_codes(np.arange(120) % 3, ["old", "new", "late"], ordered=True)
    bench.changed(lambda a: a.obs.__setitem__("stage", stages))
    values = json.loads(run_well(*bench.ask("interpolate", "--time-key", "stage", "--json")).out)
    assert values["waypoints"] == ["old", "new", "late"]
    assert set(values["groups_passed"]) <= {"old", "new", "late"}


def test_an_order_from_a_cell(bench):
    arguments = bench.ask(
        "pseudotime", "--root-cell", "cell_001", "--groupby", "cell_type", "--to", "mature_1", "--json"
    )
    values = json.loads(run_well(*arguments).out)
    assert values["root_cells"] == ["cell_001"]
    assert values["name"] == "from_cell_001"
    assert sum(values["branches"].values()) == values["n_cells"] == 120
    adata = ad.read_h5ad(bench.data)
    assert adata.obs["scvae_pseudotime_from_cell_001"]["cell_001"] == 0
    assert values["slots"] == [
        *(f"obs/scvae_{part}_from_cell_001" for part in ("pseudotime", "distance", "branch")),
        "obsm/scvae_ends_from_cell_001",
    ]


def test_steps_off_the_manifold_are_warned_of(bench, monkeypatch):
    """The limit of the off-manifold score is set to −1, so every position exceeds the limit."""
    monkeypatch.setattr("scvae_cli.tools.trajectory.steps.OFF_MANIFOLD", -1.0)
    outcome = run_well(*bench.walk("stem", "mature_1", "--path", "straight", "--quiet"))
    assert outcome.err.startswith("warning: the trajectory passes stem → ")
    assert "steps 0–49 of 0–49 lie where no cells were observed" in outcome.err
    assert "--path geodesic stays in regions with cells" in outcome.err
