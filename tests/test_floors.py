"""The rules of ARCHITECTURE.md: imports go to lower floors without circles, and one package opens data files."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scvae_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# The first match counts. Only `__main__` and the package root have no floor; nothing below imports the root.
FLOORS = {
    "scvae_cli._version": 0.0,
    "scvae_cli.amounts": 0.0,
    "scvae_cli.brief": 0.0,
    "scvae_cli.config": 0.0,
    "scvae_cli.device": 0.0,
    "scvae_cli.errors": 0.0,
    "scvae_cli.gene_list": 0.0,
    "scvae_cli.heldout": 0.0,
    "scvae_cli.importing": 0.0,
    "scvae_cli.interruption": 0.0,
    "scvae_cli.labels": 0.0,
    "scvae_cli.memory_limit": 0.0,
    "scvae_cli.options": 0.0,
    "scvae_cli.parallel": 0.0,
    "scvae_cli.path_names": 0.0,
    "scvae_cli.progress": 0.0,
    "scvae_cli.regular_file": 0.0,
    "scvae_cli.respelling": 0.0,
    "scvae_cli.shared_options": 0.0,
    "scvae_cli.shell_line": 0.0,
    "scvae_cli.strict_json": 0.0,
    "scvae_cli.text_table": 0.0,
    "scvae_cli.verb": 0.0,
    "scvae_cli.data": 1.0,
    "scvae_cli.model": 2.0,
    "scvae_cli.training": 3.0,
    "scvae_cli.latent": 3.0,
    "scvae_cli.report": 3.0,
    "scvae_cli.evaluation": 3.5,
    "scvae_cli.session": 3.5,
    "scvae_cli.question": 3.75,
    "scvae_cli.new_cells_question": 3.8,
    "scvae_cli.training_counts": 3.9,
    "scvae_cli.training_progress": 3.9,
    "scvae_cli.tools": 4.0,
    "scvae_cli.verbs": 5.0,
    "scvae_cli.config_file": 5.5,
    "scvae_cli.api": 6.0,
    "scvae_cli.cli": 6.0,
}
LARGE_LIBRARIES = {
    "torch",
    "numba",
    "numpy",
    "scipy",
    "pandas",
    "anndata",
    "scanpy",
    "h5py",
    "matplotlib",
    "safetensors",
    "rich",
}
# Modules of `data` that open HDF5 files although their names do not begin with h5ad.
_OPENING = ("data.patient_file", "data.file_kinds", "data.modalities", "data.tenx_h5", "data.hdf5_filters")
BANNED = {"utils", "util", "base", "common", "helpers", "misc"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> tuple[str, float] | None:
    """Return the package (or single module) to which a module belongs, and its floor; None for the package root."""
    for package, floor in FLOORS.items():
        if module == package or module.startswith(f"{package}."):
            return package, floor
    return None


def imports(tree: ast.AST, *, top_level_only: bool = False) -> Iterator[str]:
    """Return every imported module, also those imported in functions, except imports for type checking only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            continue
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        later = top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if not for_types and not later:
            yield from imports(node, top_level_only=top_level_only)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    module = name_of(path)
    if module in ("scvae_cli", "scvae_cli.__main__"):
        return
    here = floor_of(module)
    assert here is not None, f"{module} is on no floor"
    for imported in imports(parsed(path)):
        there = floor_of(imported)
        if there is None or there[0] == here[0]:
            continue
        both_on_floor_0 = here[1] == there[1] == 0
        assert there[1] < here[1] or both_on_floor_0, f"{module} (floor {here[1]:g}) imports {imported} ({there[1]:g})"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_type_checking_imports_go_down(path):
    """A module that imports a type from a higher floor would depend on its callers."""
    here = floor_of(name_of(path))
    if here is None:
        return
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            there = floor_of(node.module)
            assert there is None or there[1] <= here[1], f"{name_of(path)} imports {node.module}"


def test_no_module_imports_the_package_root():
    for path in MODULES:
        module = name_of(path)
        if module in ("scvae_cli", "scvae_cli.__main__"):
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                assert "scvae_cli" not in [alias.name for alias in node.names], module
            if isinstance(node, ast.ImportFrom) and node.module == "scvae_cli":
                # `from scvae_cli import data` is allowed, because it imports a package and not the exports of the root.
                assert all((PACKAGE / alias.name).is_dir() for alias in node.names), module


def test_no_circular_imports_between_files():
    """Not even imports in functions or for type checking are allowed."""
    known = {name_of(path): path for path in MODULES}
    waiting = {}
    for module, path in known.items():
        named = {
            target
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.ImportFrom) and node.module
            for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        }
        waiting[module] = {target for target in named if target in known and target != module}
    # The `__init__` of a package imports nothing of the package.
    while free := [module for module, needed in waiting.items() if not needed & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert not waiting, f"in a circle, or above one: {sorted(waiting)}"


# Folders of `tools` that may use the results of another folder.
BETWEEN_TOOLS = {
    "optimize": {"trajectory"},
    "diagnose": {"trajectory", "score"},
    "sweep": {"score"},
    "map": {"score"},
    "train": {"annotate"},
}


@pytest.mark.parametrize("path", sorted((PACKAGE / "tools").rglob("*.py")), ids=name_of)
def test_tools_import_only_the_tools_that_they_may_use(path):
    module = name_of(path)
    here = module.split(".")[2] if module.count(".") > 1 else ""
    for imported in imports(parsed(path)):
        parts = imported.split(".")
        if parts[:2] == ["scvae_cli", "tools"] and len(parts) > 2 and parts[2] != here:
            assert parts[2] in BETWEEN_TOOLS.get(here, set()), f"{module} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_data_package_opens_hdf5_files(path):
    opens = any(
        isinstance(node, ast.Call) and ast.unparse(node.func) in ("h5py.File", "File")
        for node in ast.walk(parsed(path))
    )
    module = name_of(path).removeprefix("scvae_cli.")
    assert not opens or module.startswith("data.h5ad") or module in _OPENING


HELP_MODULES = [*(PACKAGE / "cli").glob("*.py"), *(PACKAGE / "tools").glob("*/options.py")]
HELP_MODULES += [
    PACKAGE / f"{name}.py" for name in ("options", "shared_options", "verb", "verbs", "config", "config_file")
]


@pytest.mark.parametrize("path", sorted(HELP_MODULES), ids=name_of)
def test_modules_read_by_help_import_no_large_libraries(path):
    assert not {name.split(".")[0] for name in imports(parsed(path), top_level_only=True)} & LARGE_LIBRARIES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_have_a_docstring_and_no_catch_all_name(path):
    assert not {*path.relative_to(PACKAGE).with_suffix("").parts} & BANNED
    assert ast.get_docstring(parsed(path)), "the docstring of a file says what the file contains"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_computations_neither_read_nor_write_files(path):
    if not name_of(path).startswith(("scvae_cli.latent.", "scvae_cli.tools.")):
        return
    calls = {ast.unparse(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)}
    assert not {call for call in calls if call.split(".")[-1] in ("open", "read_text", "write_text", "write_h5ad")}
