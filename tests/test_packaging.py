"""The required, pinned and tested versions of dependencies are consistent."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ["3.11", "3.12", "3.13"]


def required(*extras: str) -> dict[str, Requirement]:
    """Return the requirements of pyproject.toml by name."""
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    requirements = [Requirement(line) for some in lists for line in some]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def pinned(file: str, python: str) -> dict[str, Version]:
    """Return the versions of a constraints file by name, for one version of Python."""
    versions = {}
    for line in (ROOT / file).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (specifier,) = requirement.specifier
            name = canonicalize_name(requirement.name)
            assert name not in versions, f"{name} is pinned twice for Python {python}"
            versions[name] = Version(specifier.version)
    return versions


@pytest.mark.parametrize("python", PYTHONS)
def test_lowest_versions_are_the_lower_bounds(python):
    lowest = pinned("constraints-lowest.txt", python)
    requirements = required("test", "demo", "compare")
    assert set(lowest) == set(requirements)
    for name, requirement in requirements.items():
        assert lowest[name] in requirement.specifier, f"{requirement} does not allow {lowest[name]}"
        (bound,) = (Version(each.version) for each in requirement.specifier if each.operator == ">=")
        # Some of the lowest versions have no wheels for later versions of Python.
        assert lowest[name] == bound or python != PYTHONS[0], f"{requirement} is tested with {lowest[name]}"


def test_pinned_versions_are_allowed():
    versions = pinned("constraints.txt", PYTHONS[0])
    for name, requirement in required("test", "lint", "demo", "compare").items():
        assert versions[name] in requirement.specifier, f"{requirement} does not allow {versions[name]}"


def test_broken_pynndescent_is_excluded():
    """With pynndescent 0.7.0, `sc.pp.neighbors` fails above about 8,000 cells."""
    assert "0.7.0" not in required()["pynndescent"].specifier
    for file in ("constraints.txt", "constraints-lowest.txt"):
        assert pinned(file, PYTHONS[0])["pynndescent"] != Version("0.7.0")


def test_igraph_for_leiden_is_in_the_demo():
    assert required("leiden")["igraph"].specifier == required("demo")["igraph"].specifier


def test_package_is_marked_as_typed():
    assert (ROOT / "scvae_cli" / "py.typed").exists()
