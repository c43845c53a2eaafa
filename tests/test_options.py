"""An option is declared once; the command, the Python function and the config file follow the declaration."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from scvae_cli.api import function_of
from scvae_cli.cli.command import command_of
from scvae_cli.config_file import resolve
from scvae_cli.errors import ConfigError
from scvae_cli.options import Flag, Options, build, declarations, option, section
from scvae_cli.respelling import respelled
from scvae_cli.verb import Verb
from scvae_cli.verbs import VERBS


@dataclass(frozen=True, kw_only=True)
class Inner(Options):
    """A section of options."""

    size: int = option(3, help="Size.", least=1)
    shape: Literal["round", "flat"] = option("round", help="Shape.")


@dataclass(frozen=True, kw_only=True)
class Sample(Options):
    """Options of every kind."""

    share: float = option(0.5, help="Share.", above=0, below=1)
    n_steps: int | None = option(None, help="Steps.", flags=("--steps", "-s"), least=2, most=10)
    ends: tuple[str, ...] = option(
        (),
        help="Ends.",
        flags=(
            Flag(name="--from", help="First."),
            Flag(name="--via", help="Between.", repeated=True),
            Flag(name="--to", help="Last."),
        ),
        label=True,
    )
    weights: tuple[float, ...] = option((), help="Weights.", above=0)
    library: str | float = option("median", help="Library.", choices=("median",), above=0)
    quick: bool = option(False, help="Quick.")
    inner: Inner = section(Inner, without=frozenset({"shape"}))

    def check(self) -> None:
        """Whether the combination is allowed."""
        if self.quick and self.n_steps is not None:
            raise ConfigError("--quick and --steps were both given", "leave out --steps")


VERB = Verb(
    name="probe",
    panel="Start",
    options=Sample,
    home="nowhere:nothing",
    about="Probe.\n\n    More.",
    example="scvae probe",
)


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"share": 0}, "--share is 0", "a number above 0 and below 1"),
        ({"share": float("nan")}, "--share is nan", "a number above 0"),
        ({"share": True}, "--share is True", "a number above 0"),
        ({"share": "0.5"}, "--share is '0.5'", "a number above 0"),
        ({"n_steps": 1}, "--steps is 1", "a whole number from 2 to 10"),
        ({"n_steps": 2.5}, "--steps is 2.5", "a whole number"),
        ({"weights": [1, -1]}, "--weights is -1 in '1,-1'", "numbers above 0"),
        ({"library": "mean"}, "--library is 'mean'", "one of: median; or a number above 0"),
        ({"library": -3}, "--library is -3", "one of: median"),
        ({"shape": "square"}, "--shape is 'square'", "one of: round, flat"),
        ({"quick": 1}, "--quick is 1", "true or false"),
        ({"quick": True, "n_steps": 3}, "both given", "leave out"),
    ],
)
def test_invalid_values_are_refused(values, message, hint):
    options = Inner if "shape" in values else Sample
    with pytest.raises(ConfigError) as error:
        build(options, values)
    assert message in error.value.message
    assert hint in error.value.hint


@given(st.integers(2, 10), st.floats(0.001, 0.999))
def test_numpy_scalars_are_numbers(steps, share):
    made = Sample(n_steps=np.int64(steps), share=np.float64(share))
    assert made == Sample(n_steps=steps, share=share)
    assert type(made.n_steps) is int
    assert type(made.share) is float


@pytest.mark.parametrize("label", [1, True, np.int64(1), 1.0, "1"])
def test_labels_may_have_any_type(label):
    assert Sample(ends=[label, "b"]).ends == ("True" if label is True else "1", "b")


def test_several_values_become_a_tuple():
    assert Sample(weights=np.array([1.0, 2.0])).weights == (1.0, 2.0)
    assert Sample(ends="a").ends == ("a",)
    assert Sample(library="2000").library == 2000


def test_options_of_sections_are_given_flat_and_stored_nested():
    assert build(Sample, {"size": 5, "share": 0.2}) == Sample(share=0.2, inner=Inner(size=5))
    assert {d.name for d in declarations(Sample)} == {f.name for f in dataclasses.fields(Sample)} - {"inner"} | {"size"}
    assert build(Sample, {"shape": "flat"}).inner.shape == "round", "a hidden name needs the name of its section"
    assert build(Sample, {"inner/shape": "flat"}).inner.shape == "flat"


def test_messages_use_the_names_of_python_arguments():
    assert respelled("--steps is 0; use --from and --to, or -s", Sample) == "n_steps is 0; use ends, or n_steps"
    assert respelled("an off-manifold score --unknown", Sample) == "an off-manifold score --unknown"


# --- commands and functions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [*VERBS, VERB], ids=lambda verb: verb.name)
def test_command_has_every_option(verb):
    app = typer.Typer()
    app.command(verb.name)(command_of(verb))
    app.callback()(lambda: None)
    command = typer.main.get_command(app).commands[verb.name]
    flags = {flag for parameter in command.params for flag in parameter.opts}
    for declared in declarations(verb.options):
        assert set(declared.spellings) <= flags
        assert declared.help.endswith((".", "…"))


@pytest.mark.parametrize("verb", [*(v for v in VERBS if v.in_python), VERB], ids=lambda verb: verb.name)
def test_function_has_every_option_with_its_default(verb):
    function = function_of(verb)
    parameters = inspect.signature(function).parameters
    for declared in declarations(verb.options):
        if declared.in_python:
            assert declared.name in parameters
            given = parameters[declared.name].default
            assert given is inspect.Parameter.empty or given == declared.default
            assert f"\n{declared.name}\n" in function.__doc__
    with pytest.raises(TypeError, match="did you mean 'config'"):
        function(None, None, confg=1)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_examples_have_valid_options(verb):
    import shlex

    words = shlex.split(verb.example)
    assert words[:2] == ["scvae", verb.name]
    flags = {flag for d in declarations(verb.options) for flag in d.spellings} | {"-m", "--model", "--config"}
    assert {word for word in words if word.startswith("-")} <= flags


# --- files ------------------------------------------------------------------------------------------------------------


def verb_named(name: str) -> Verb:
    return next(verb for verb in VERBS if verb.name == name)


def test_config_file_may_have_options_of_several_verbs(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[model]\nn_latent = 7\n[train]\nbeta = 2\n[embed]\nrefine = 5\n[interpolate]\nn_steps = 9\n")
    trained = resolve(verb_named("train"), {"beta": 3.0}, file).training
    assert (trained.model.n_latent, trained.train.beta) == (7, 3.0)
    assert resolve(verb_named("embed"), {}, file).refine == 5
    swept = resolve(verb_named("sweep"), {"n_latent": (2, 3)}, file)
    assert swept.training.train.beta == 2, "the option that is not varied may be in a config file"
    assert swept.values == (2, 3)


def test_empty_config_file_gives_the_defaults(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("")
    for verb in VERBS:
        try:
            expected = build(verb.options, {})
        except ConfigError:
            continue
        assert resolve(verb, {}, Path(file)) == expected
