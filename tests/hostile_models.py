"""Mutations that make valid model folders and saved trainings hostile, chosen at random by a seed.

Hashes are computed again after most mutations, as a person who forges a model would do.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from damaged_files import put_no_file

Random = np.random.Generator
Kind = Callable[[Path, Random], None]

TENSORS = ("weights.safetensors", "latent.safetensors", "labels.safetensors")
TEXTS = ("genes.txt", "heldout_cells.txt", "history.csv")
STATE = ("state.safetensors", "state.json")

STRANGE: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 10**5,
    lambda: 10**9,
    lambda: 10**17,
    lambda: 1.5,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: "",
    lambda: "a\nerror: forged",
    lambda: "\x1b[2J",
    lambda: "\ud800",
    lambda: "x" * 10_000,
    list,
    dict,
    lambda: [[]],
    lambda: [1, 2],
    lambda: {"a": {"b": 1}},
    lambda: ["a", "a"],
]
RAW: list[bytes] = [
    b"",
    b"\xff\xfe",
    b"[" * 200_000,
    b'{"a":' * 5000,
    b"9" * 5000,
    b'{"format": ' + b"9" * 5000 + b"}",
    b"null",
    b"[1]",
    b"{",
    b"\xef\xbb\xbf{}",
]


def _any(choices: Any, random: Random) -> Any:
    return choices[int(random.integers(0, len(choices)))]


# --- signing ----------------------------------------------------------------------------------------------------------


def sign(folder: Path) -> None:
    """Compute the hashes of a model folder, or of the saved state of a training, again."""
    if (folder / STATE[1]).exists():
        numbers = json.loads((folder / STATE[1]).read_text())
        numbers.pop("sha256", None)
        content = json.dumps(numbers, sort_keys=True).encode() + (folder / STATE[0]).read_bytes()
        (folder / STATE[1]).write_text(json.dumps(numbers | {"sha256": hashlib.sha256(content).hexdigest()}))
        return
    config = json.loads((folder / "config.json").read_text())
    names = [name for name in TENSORS + TEXTS if (folder / name).exists()]
    config["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    config["sha256"]["config.json"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


def unpack_state(state: Path, folder: Path) -> None:
    """Split the saved state of a training into a folder with a file of numbers and one of tensors."""
    numbers, _, tensors = state.read_bytes().partition(b"\n")
    folder.mkdir()
    (folder / STATE[1]).write_bytes(numbers)
    (folder / STATE[0]).write_bytes(tensors)


def pack_state(folder: Path, state: Path) -> None:
    """Join the two files of `unpack_state` to a saved state."""
    state.write_bytes((folder / STATE[1]).read_bytes() + b"\n" + (folder / STATE[0]).read_bytes())


def _signed(change: Kind) -> Kind:
    def damage(folder: Path, random: Random) -> None:
        change(folder, random)
        sign(folder)

    return damage


def _json_file(folder: Path) -> Path:
    return folder / (STATE[1] if (folder / STATE[1]).exists() else "config.json")


def _tensor_file(folder: Path, random: Random) -> Path:
    if (folder / STATE[0]).exists():
        return folder / STATE[0]
    return folder / _any([name for name in TENSORS if (folder / name).exists()], random)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


# --- tensors ----------------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> tuple[dict[str, Any], bytearray]:
    """Return the header of a safetensors file, and its values."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])


def write_tensors(path: Path, header: Any, values: bytes) -> None:
    """Write a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)


def _header(folder: Path, random: Random) -> None:
    path = _tensor_file(folder, random)
    header, values = read_tensors(path)
    names = [name for name in header if name != "__metadata__"]
    one = header[_any(names, random)]
    choice = random.integers(0, 12)
    if choice == 0:
        one["shape"] = [10**12]
    elif choice == 1:
        one["shape"] = [2**40, 2**40]
    elif choice == 2:
        one["shape"] = [*one["shape"], 1]
    elif choice == 3:
        one["shape"] = one["shape"][::-1]
    elif choice == 4:
        one["dtype"] = _any(["F64", "F16", "BF16", "I32", "I64", "BOOL", "F8_E4M3", "nothing", 3], random)
    elif choice == 5:
        one["data_offsets"] = _any([[0, 10**15], [5, 1], [-1, 4], [0, 0], [], "a"], random)
    elif choice == 6:
        header[_any(names, random)] = _any(STRANGE, random)()
    elif choice == 7:
        header["extra"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(values), len(values)]}
    elif choice == 8:
        header = b"[" * 100_000
    elif choice == 9:
        header = b"\xff" * 64
    elif choice == 10:
        header["a\nerror: forged"] = header.pop(_any(names, random))
    else:
        path.write_bytes(struct.pack("<Q", int(_any([2**63, 2**40, 10**8, 0], random))) + bytes(values))
        return
    write_tensors(path, header, bytes(values))


def _tensors(folder: Path, random: Random) -> None:
    """Change the type or the shape of tensors in a valid file, remove a tensor, or add one."""
    path = _tensor_file(folder, random)
    header, values = read_tensors(path)
    arrays = {n: np.frombuffer(values, "<f4")[_slice(h)].reshape(h["shape"]) for n, h in header.items()}
    name = _any(list(arrays), random)
    array = arrays[name]
    choice = random.integers(0, 8)
    if choice == 0:
        del arrays[name]
    elif choice == 1:
        arrays["more"] = array
    elif choice == 2:
        arrays[name] = array.astype(_any([np.float64, np.float16, np.int32, np.uint8], random))
    elif choice == 3:
        arrays[name] = array.reshape(-1)
    elif choice == 4:
        arrays[name] = array[..., None]
    elif choice == 5:
        arrays[name] = array[:0] if array.ndim else np.zeros(0, np.float32)
    elif choice == 6:
        arrays[name] = np.concatenate([array, array]) if array.ndim else np.zeros(2, np.float32)
    else:
        other = _any(list(arrays), random)
        arrays[name], arrays[other] = arrays[other], arrays[name]
    _write_arrays(path, arrays)


def _slice(entry: dict[str, Any]) -> slice:
    start, end = entry["data_offsets"]
    return slice(start // 4, end // 4)


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    kinds = {"float32": "F32", "float64": "F64", "float16": "F16", "int32": "I32", "uint8": "U8"}
    header, values = {}, b""
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        offsets = [len(values), len(values) + len(data)]
        header[name] = {"dtype": kinds[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        values += data
    write_tensors(path, header, values)


def _weights(folder: Path, random: Random) -> None:
    """Write extreme values, or values that are not finite, into one tensor or one element of a tensor."""
    path = _tensor_file(folder, random)
    header, values = read_tensors(path)
    start, end = header[_any([name for name in header if name != "__metadata__"], random)]["data_offsets"]
    numbers = np.frombuffer(values, "<f4").copy()
    value = _any([np.nan, np.inf, -np.inf, 1e38, -1e38, 1e20, 1e8, 0.0, 1e-45], random)
    if random.random() < 0.5 or end - start <= 4:
        numbers[start // 4 : end // 4] = value
    else:
        numbers[int(random.integers(start // 4, end // 4))] = value
    write_tensors(path, header, numbers.tobytes())


# --- texts ------------------------------------------------------------------------------------------------------------


def _names(folder: Path, random: Random) -> None:
    path = folder / _any(TEXTS[:2], random)
    lines = path.read_bytes().split(b"\n")[:-1]
    changes: list[Callable[[], list[bytes]]] = [
        lambda: [lines[0]] * len(lines),
        lambda: [*lines[:-1], lines[0]],
        lambda: lines[:-1],
        lambda: [*lines, b"more"],
        lambda: [b"\xff\xfe" + line for line in lines],
        lambda: [b"\x1b[2J\r" + line for line in lines],
        lambda: [b"x" * 100_000, *lines[1:]],
        lambda: lines[::-1],
        list,
        lambda: [b"", *lines[1:]],
    ]
    path.write_bytes(b"".join(line + b"\n" for line in _any(changes, random)()))


def _raw_json(folder: Path, random: Random) -> None:
    _json_file(folder).write_bytes(_any(RAW, random))


def _spots(value: Any, spot: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [spot, *(deeper for key, item in inner for deeper in _spots(item, (*spot, key)))]


def _json_values(folder: Path, random: Random) -> None:
    """Replace any value of config.json or of the saved state by a value of another kind, or remove or add a key."""
    path = _json_file(folder)
    config = json.loads(path.read_text())
    for _ in range(int(random.integers(1, 3))):
        spots = [spot for spot in _spots(config) if spot and spot[0] not in ("sha256", "run_hash")]
        *parents, key = _any(spots, random)
        holder = config
        for parent in parents:
            holder = holder[parent]
        choice = random.random()
        if choice < 0.15 and isinstance(holder, dict):
            del holder[key]
        elif choice < 0.25 and isinstance(holder, dict):
            holder["more"] = _any(STRANGE, random)()
        else:
            holder[key] = _any(STRANGE, random)()
    path.write_text(json.dumps(config))


def _facts(folder: Path, random: Random) -> None:
    path = _json_file(folder)
    config = json.loads(path.read_text())
    name = "facts" if "facts" in config else _any(["schedule", "history", "seconds", "rollbacks"], random)
    inner = config[name]
    if random.random() < 0.3 or not isinstance(inner, dict):
        config[name] = _any(STRANGE, random)()
    else:
        inner[_any(list(inner), random)] = _any(STRANGE, random)()
    path.write_text(json.dumps(config))


def _sizes(folder: Path, random: Random) -> None:
    path = _json_file(folder)
    config = json.loads(path.read_text())
    if "run" not in config:
        config["schedule"][_any(list(config["schedule"]), random)] = _any([10**5, 10**12, -1, 0], random)
    else:
        key = _any(["n_layers", "n_latent", "n_hidden", "likelihood", "decoder", "variance"], random)
        config["run"]["model"][key] = _any([10**5, 10**9, 10**17, 1, 2, "normal", "nb", "linear", 0.5, None], random)
        if random.random() < 0.3:
            config["batches"] = _any([["a", "b"], ["a"] * 3, [1, 2], "ab", {"a": 1}, [["a"]]], random)
    path.write_text(json.dumps(config))


# --- files ------------------------------------------------------------------------------------------------------------


def _in_place(folder: Path, random: Random) -> None:
    """Replace a file by something that is not a file, or by a file that is larger than its content."""
    path = _any(_files(folder), random)
    choice = random.integers(0, 6)
    if choice == 5:
        os.truncate(path, 10**12)
        return
    put_no_file(path, int(choice), random)


def _flip(folder: Path, random: Random) -> None:
    path = _any(_files(folder), random)
    content = bytearray(path.read_bytes())
    for at in random.integers(0, len(content), random.integers(1, 9)):
        content[at] ^= 1 << int(random.integers(0, 8))
    path.write_bytes(content)


def _flip_signed(folder: Path, random: Random) -> None:
    path = _any([path for path in _files(folder) if path.suffix != ".json"], random)
    content = bytearray(path.read_bytes())
    for at in random.integers(0, len(content), random.integers(1, 9)):
        content[at] ^= 1 << int(random.integers(0, 8))
    path.write_bytes(content)
    sign(folder)


def _cut(folder: Path, random: Random) -> None:
    path = _any([path for path in _files(folder) if path.suffix != ".json"], random)
    content = path.read_bytes()
    path.write_bytes(content[: int(random.integers(0, len(content)))])
    sign(folder)


KINDS: dict[str, Kind] = {
    "header of tensors": _signed(_header),
    "types and shapes of tensors": _signed(_tensors),
    "weights": _signed(_weights),
    "JSON": _raw_json,
    "values in JSON": _signed(_json_values),
    "facts": _signed(_facts),
    "sizes of the network": _signed(_sizes),
    "no file": _in_place,
    "flipped bits": _flip,
    "flipped bits, signed": _flip_signed,
    "cut files": _cut,
}
MODEL_KINDS: dict[str, Kind] = KINDS | {"names": _signed(_names)}
