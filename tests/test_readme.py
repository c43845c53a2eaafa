"""The README shows the same script as the file in the repository."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_scanpy_script_in_the_readme_is_the_example():
    shown = re.search(r"<!-- (examples/\S+) -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert shown[2] == (ROOT / shown[1]).read_text()
