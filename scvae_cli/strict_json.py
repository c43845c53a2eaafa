"""Safe reading of JSON that may come from strangers.

The depth of nesting and the number of digits are limited, and any invalid text raises a ValueError.
"""

from __future__ import annotations

import json
from typing import Any

# JSON files of scvae are nested at most four levels deep. An integer of 18 digits fits into int64.
_DEPTH, _DIGITS = 32, 18


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        If the text is not JSON in UTF-8, is nested more than 32 levels deep, contains an integer of more than 18
        digits, or contains half of a Unicode character (an unpaired surrogate).
    """
    try:
        value = json.loads(content, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("the JSON text is nested too deeply") from error
    level = [value]
    for _ in range(_DEPTH):
        for text in level:
            if isinstance(text, str):
                text.encode()  # half of a character raises a UnicodeEncodeError, which is a ValueError
        level = [inner for outer in level for inner in _within(outer)]
        if not level:
            return value
    raise ValueError("the JSON text is nested too deeply")


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _DIGITS:
        raise ValueError(f"a number in the JSON text has more than {_DIGITS} digits")
    return int(digits)


def _within(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []
