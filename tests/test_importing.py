"""Garbage collection is switched off during imports, and restored afterwards."""

import gc
import subprocess
import sys

import pytest

from scvae_cli.importing import importing


@pytest.fixture(autouse=True)
def _collector():
    """Restore the garbage collector after each test."""
    was_enabled = gc.isenabled()
    yield
    gc.enable() if was_enabled else gc.disable()


def test_garbage_collection_is_off_during_imports_and_on_afterwards():
    gc.enable()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_disabled_garbage_collection_stays_disabled():
    gc.disable()
    with importing():
        pass
    assert not gc.isenabled()


def test_failed_import_enables_garbage_collection_again():
    gc.enable()
    with pytest.raises(ModuleNotFoundError), importing():
        import scvae_cli.no_such_module  # type: ignore[import-not-found]  # noqa: F401  # this import must fail
    assert gc.isenabled()


def test_objects_made_during_imports_are_old_and_can_be_collected():
    gc.enable()
    with importing():
        cycle = [object() for _ in range(3)] + [[]]
        cycle[-1].append(cycle)
        assert any(thing is cycle for thing in gc.get_objects(generation=0))
    assert any(thing is cycle for thing in gc.get_objects(generation=2))
    assert gc.get_freeze_count() == 0


def test_frozen_objects_stay_frozen():
    gc.enable()
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with importing():
            pass
        # A frozen object is still freed when nothing refers to it any more.
        assert gc.get_freeze_count() > 0.99 * frozen > 0
    finally:
        gc.unfreeze()


def test_import_of_the_package_runs_no_full_garbage_collection():
    program = """
import gc
import scvae_cli
searches = []
# A search among young objects takes no time; one among all objects does.
gc.callbacks.append(lambda phase, info: searches.append(phase) if info["generation"] == 2 else None)
scvae_cli.train
print(len(searches))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0, "searches for garbage"


def test_train_in_python_does_not_import_slow_packages():
    program = """
import sys
import scvae_cli
scvae_cli.train
print(*sorted({"anndata", "matplotlib", "pandas", "scanpy", "sklearn"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
