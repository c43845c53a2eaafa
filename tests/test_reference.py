"""The reference page and the type stub `__init__.pyi` agree with the declared options."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "make_reference.py"


@pytest.mark.parametrize(("made", "file"), [("reference", "REFERENCE"), ("stub", "STUB")])
def test_reference_page_and_stub_are_up_to_date(made, file):
    module = runpy.run_path(str(SCRIPT))
    assert module[file].read_text(encoding="utf-8") == module[made](), "run: python docs/make_reference.py"
