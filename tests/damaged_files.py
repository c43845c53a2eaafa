"""Mutations that damage an .h5ad file, chosen at random by a seed, to test all code that reads files.

Each kind of mutation is a function (path, random) that changes the file at `path` in place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Random = np.random.Generator
Kind = Callable[[Path, Random], None]

MATRICES = ("X", "layers/counts", "raw/X")


# --- bytes ------------------------------------------------------------------------------------------------------------


def _bytes(change: Callable[[bytearray, Random], bytearray | None]) -> Kind:
    def damage(path: Path, random: Random) -> None:
        content = bytearray(path.read_bytes())
        path.write_bytes(change(content, random) or content)

    return damage


def _flip_bits(content: bytearray, random: Random) -> None:
    for at in random.integers(0, len(content), random.integers(1, 9)):
        content[at] ^= 1 << int(random.integers(0, 8))


def _flip_structure(content: bytearray, random: Random) -> None:
    """Change bytes just after the signature of an HDF5 header, heap or tree, because HDF5 reads these bytes first."""
    marks = [i for mark in (b"TREE", b"HEAP", b"SNOD", b"GCOL", b"OHDR", b"\x89HDF") for i in _all(content, mark)]
    for mark in random.choice(marks, random.integers(1, 5)):
        at = min(int(mark) + int(random.integers(4, 64)), len(content) - 1)
        content[at] = int(random.integers(0, 256))


def _all(content: bytearray, mark: bytes) -> list[int]:
    found, at = [], content.find(mark)
    while at >= 0:
        found.append(at)
        at = content.find(mark, at + 1)
    return found


def _zero_tail(content: bytearray, random: Random) -> None:
    start = int(len(content) * random.uniform(0.05, 0.999))
    content[start:] = bytes(len(content) - start)


def _truncate(content: bytearray, random: Random) -> bytearray:
    return content[: int(random.integers(0, len(content)))]


def _zero_block(content: bytearray, random: Random) -> None:
    start = int(random.integers(0, len(content)))
    size = min(int(random.choice([8, 64, 512, 4096])), len(content) - start)
    content[start : start + size] = bytes(size)


def _noise_block(content: bytearray, random: Random) -> None:
    start = int(random.integers(0, len(content)))
    size = min(int(random.choice([8, 64, 512])), len(content) - start)
    content[start : start + size] = random.bytes(size)


def _swap_blocks(content: bytearray, random: Random) -> None:
    size = int(random.choice([16, 128, 1024]))
    one, other = sorted(int(i) for i in random.integers(0, len(content) - 2 * size, 2))
    other = max(other, one + size)
    first, second = content[one : one + size], content[other : other + size]
    content[one : one + size], content[other : other + size] = second, first


# --- elements ---------------------------------------------------------------------------------------------------------


def _edit(change: Callable[[h5py.File, Random], None]) -> Kind:
    def damage(path: Path, random: Random) -> None:
        with h5py.File(path, "r+") as file:
            change(file, random)

    return damage


def _sparse(file: h5py.File, random: Random) -> h5py.Group:
    return file[_any([name for name in MATRICES if name in file and isinstance(file[name], h5py.Group)], random)]


def _any(choices: list[Any], random: Random) -> Any:
    return choices[int(random.integers(0, len(choices)))]


def _replace(group: h5py.Group, key: str, values: Any, **options: Any) -> None:
    attributes = dict(group[key].attrs) if key in group else {}
    if key in group:
        del group[key]
    item = group.create_dataset(key, data=values, **options)
    for name, value in attributes.items():
        item.attrs[name] = value


def _pointers(file: h5py.File, random: Random) -> None:
    group = _sparse(file, random)
    p = group["indptr"][:]
    middle = len(p) // 2
    changes: list[Callable[[], Any]] = [
        lambda: p[:-1],
        lambda: p[: max(1, middle)],
        lambda: np.append(p, p[-1]),
        lambda: np.concatenate([p[:middle], p[middle:][::-1]]),
        lambda: p + 1,
        lambda: p - 1,
        lambda: p + (np.arange(len(p)) == middle) * 10**6,
        lambda: p.astype(np.int64) + (np.arange(len(p)) >= middle) * 2**40,
        lambda: -p,
        lambda: p * 0.5,
        lambda: p.astype(float) + np.where(np.arange(len(p)) == middle, np.nan, 0),
        lambda: p.astype("S8"),
        lambda: p[:, None],
        lambda: p[0],
        lambda: np.zeros(0, p.dtype),
        lambda: np.zeros_like(p),
        lambda: p.astype(np.uint64) + np.uint64(2**63),
        lambda: np.where(np.arange(len(p)) >= middle, 0, p),
    ]
    _replace(group, "indptr", _any(changes, random)())


def _indices(file: h5py.File, random: Random) -> None:
    group = _sparse(file, random)
    i = group["indices"][:]
    at = np.arange(len(i)) == len(i) // 3
    changes: list[Callable[[], Any]] = [
        lambda: i + at * 0.5,
        lambda: i.astype(float),
        lambda: i.astype(float) + np.where(at, np.inf, 0),
        lambda: i.astype(np.int64) + at * 2**40,
        lambda: i.astype(np.int64) + at * 2**32,
        lambda: i - at * 10**6,
        lambda: i.astype(np.uint64) + at.astype(np.uint64) * np.uint64(2**63),
        lambda: i.astype("S4"),
        lambda: i[:-1],
        lambda: np.append(i, 0),
        lambda: i[:, None],
        lambda: i > 3,
        lambda: np.zeros_like(i),
        lambda: i[::-1],
        lambda: i * 0 + 10**9,
    ]
    _replace(group, "indices", _any(changes, random)())


def _values(file: h5py.File, random: Random) -> None:
    name = _any([name for name in MATRICES if name in file], random)
    sparse = isinstance(file[name], h5py.Group)
    group, key = (file[name], "data") if sparse else (file, name)
    v = group[key][:]
    flat = np.arange(v.size).reshape(v.shape)
    at = flat == v.size // 3
    changes: list[Callable[[], Any]] = [
        lambda: v.astype(float) + at * 1e39,
        lambda: v.astype(float) + at * 1e300,
        lambda: v.astype(float) + at * 3e38,
        lambda: v.astype(np.int64) + at * 2**62,
        lambda: v.astype(np.uint64) + at.astype(np.uint64) * np.uint64(2**63),
        lambda: v.astype(float) + np.where(at, np.nan, 0),
        lambda: v.astype(float) + np.where(at, np.inf, 0),
        lambda: v.astype(float) - at * 1000,
        lambda: v.astype(float) + at * 0.5,
        lambda: v + 1j,
        lambda: v.astype("S8"),
        lambda: np.array([(x, 1) for x in v.ravel()], dtype=[("a", "f4"), ("b", "i4")]),
        lambda: v.astype(np.float16),
        lambda: v.astype(">f8"),
        lambda: v.astype(np.longdouble),
        lambda: v.ravel()[:-1],
        lambda: v.ravel()[: v.size // 2],
        lambda: np.append(v.ravel(), 1),
        lambda: v[..., None],
        lambda: v > 0,
        lambda: v * 0,
    ]
    _replace(group, key, _any(changes, random)())


STRANGE: list[Callable[[], Any]] = [
    lambda: 7,
    lambda: -1,
    lambda: 2.5,
    lambda: np.nan,
    lambda: np.bytes_(b"\xff\xfe"),
    lambda: "",
    lambda: "nowhere",
    lambda: "csc_matrix",
    lambda: "csr_matrix",
    lambda: "dict",
    lambda: "dataframe",
    lambda: "string-array",
    lambda: "a\nerror: forged",
    lambda: np.arange(5),
    lambda: np.array(["a", "b"], dtype=h5py.string_dtype()),
    lambda: np.zeros(0),
    lambda: np.array([2**62, 2**62]),
    lambda: np.array([-1, 40]),
    lambda: np.array([60.0, 40.5]),
    lambda: np.zeros((2, 2)),
    lambda: True,
    lambda: h5py.Empty("f4"),
    lambda: np.void(b"\x00" * 9),
]


def _items(file: h5py.File) -> list[str]:
    names = [""]
    file.visit(names.append)
    return [name or "/" for name in names]


def _attributes(file: h5py.File, random: Random) -> None:
    item = file[_any([name for name in _items(file) if len(file[name].attrs)], random)]
    for _ in range(int(random.integers(1, 3))):
        name = _any(list(item.attrs), random) if len(item.attrs) else "encoding-type"
        if random.random() < 0.15:
            item.attrs.pop(name, None)
        else:
            item.attrs[name] = _any(STRANGE, random)()


def _shape(file: h5py.File, random: Random) -> None:
    _sparse(file, random).attrs["shape"] = _any(STRANGE, random)()


def _kinds_of_items(file: h5py.File, random: Random) -> None:
    """Put a group where a dataset is expected, or a dataset where a group is expected."""
    name = _any([name for name in _items(file) if name != "/"], random)
    attributes = dict(file[name].attrs) if random.random() < 0.5 else {}
    was_group = isinstance(file[name], h5py.Group)
    del file[name]
    choice = random.integers(0, 4)
    if choice == 0:
        file[name] = np.dtype("f4")
        item: Any = file[name]
    elif choice == 1:
        file[name] = _any(STRANGE[:13], random)()
        item = file[name]
    elif was_group:
        item = file.create_dataset(name, data=np.arange(60))
    else:
        item = file.create_group(name)
        item["data"] = np.arange(3)
    for key, value in attributes.items():
        item.attrs[key] = value


def _removed(file: h5py.File, random: Random) -> None:
    del file[_any([name for name in _items(file) if name != "/"], random)]


def _links(file: h5py.File, random: Random) -> None:
    groups = [name for name in _items(file) if isinstance(file[name], h5py.Group)]
    group = file[_any(groups, random)]
    name = _any([*list(group), "new"], random)
    choice = random.integers(0, 5)
    if name in group:
        del group[name]
    if choice == 0:
        group[name] = h5py.SoftLink(f"{group.name}/{name}")
    elif choice == 1:
        group[name] = h5py.SoftLink("/nowhere")
    elif choice == 2:
        group[name] = group
    elif choice == 3:
        group[name] = file["/"]
    else:
        inner = group
        for _ in range(40):
            deeper = inner.create_group("a" if inner != group else name)
            if inner != group:
                inner["b"] = deeper
            inner = deeper


def _link_names(file: h5py.File, random: Random) -> None:
    group = file[_any([name for name in _items(file) if isinstance(file[name], h5py.Group)], random)]
    name = _any([b"\xff\xfe", b"caf\xe9", b"\x80", b"a\nerror: forged", b"\x1b[2J", b" ", b"x" * 5000], random)
    space = h5py.h5s.create_simple((60,))
    h5py.h5d.create(group.id, name, h5py.h5t.NATIVE_INT32, space)


def _names(file: h5py.File, random: Random) -> None:
    frame = file[_any(["obs", "var", *(["raw/var"] if "raw" in file else [])], random)]
    key = frame.attrs["_index"]
    names = [str(name) for name in frame[key].asstr()[:]]
    n = len(names)
    kinds: list[Callable[[], Any]] = [
        lambda: np.array([f"{name}\xe9".encode("latin-1") for name in names], dtype="S32"),
        lambda: names[:-1],
        lambda: [*names, "more"],
        lambda: [names[0]] * n,
        lambda: [""] * n,
        lambda: [f"{name}\nerror: forged" for name in names],
        lambda: [f"\x1b[31m{name}\r" for name in names],
        lambda: np.arange(n),
        lambda: np.arange(n) / 7,
        lambda: np.full(n, np.nan),
        lambda: np.array(names, dtype=h5py.string_dtype())[:, None],
        lambda: names[0],
        lambda: np.zeros(0),
        lambda: ["n" * 100_000, *names[1:]],
        lambda: names[::-1],
    ]
    values = _any(kinds, random)()
    if isinstance(values, list):
        values = np.array(values, dtype=h5py.string_dtype())
    _replace(frame, key, values)
    if random.random() < 0.2:
        # Write bytes that are not UTF-8, with a type that declares UTF-8.
        item, broken = frame[key], h5py.string_dtype()
        if h5py.check_string_dtype(item.dtype) is not None and item.ndim == 1 and len(item):
            _replace(frame, key, np.array([b"\xff\xfe"] * len(item), dtype=object), dtype=broken)


def _huge(file: h5py.File, random: Random) -> None:
    datasets = [name for name in _items(file) if isinstance(file[name], h5py.Dataset) and file[name].ndim]
    name = _any(datasets, random)
    item, attributes = file[name], dict(file[name].attrs)
    shape = (int(_any([10**8, 10**10, 10**12, 2**62], random)), *item.shape[1:])
    dtype, compression = item.dtype, _any([None, "gzip"], random)
    if random.random() < 0.15:
        dtype, shape = np.dtype("S1000000000"), item.shape
    del file[name]
    new = file.create_dataset(name, shape=shape, dtype=dtype, chunks=(1,) * len(shape), compression=compression)
    for key, value in attributes.items():
        new.attrs[key] = value
    if random.random() < 0.3:
        new[(0,) * len(shape)] = new.dtype.type() if new.dtype.kind in "fiub" else "a"


def _deep(file: h5py.File, random: Random) -> None:
    group = file[_any(["uns", "obsm", "obs", "layers"], random)]
    for _ in range(int(_any([50, 1000, 2000], random))):
        group = group.create_group("a")
        if random.random() < 0.5:
            group.attrs["encoding-type"] = "dict"
            group.attrs["encoding-version"] = "0.1.0"


def _columns(file: h5py.File, random: Random) -> None:
    obs = file["obs"]
    key = _any([key for key in obs if key != obs.attrs["_index"]], random)
    item = obs[key]
    if isinstance(item, h5py.Group) and random.random() < 0.7:
        part = _any(list(item), random)
        values = item[part][:]
        shaped = [values[:-1], values[:, None], values[:0], np.append(values, values[:1])]
        codes = [values + 100, values - 100, values * 0.5] if values.dtype.kind in "iu" else [np.arange(len(values))]
        _replace(item, part, _any([*shaped, *codes, np.zeros(3)], random))
        return
    strange = [np.zeros(7), np.zeros((60, 2)), np.zeros(60, complex), np.zeros(60, "M8[s]").astype("i8"), 5, "text"]
    _replace(obs, key, _any(strange, random))


_RECORD = {"slots": ["obsm/X_scvae"], "options": {}, "model_hash": "", "counts_source": "X", "device": "cpu"}
_RECORDS: list[str] = [
    "[" * 100_000,
    "9" * 5000,
    '{"slots": ' + "9" * 5000 + "}",
    json.dumps(_RECORD | {"slots": [{"a": 1}]}),
    json.dumps(_RECORD | {"slots": ["nothing"]}),
    json.dumps(_RECORD | {"slots": [7]}),
    json.dumps(_RECORD | {"earlier": ["obsm/X"]}),
    json.dumps(_RECORD | {"earlier": {"obsm/X": 3}}),
    json.dumps(_RECORD | {"options": {"a": [[["b\nerror: forged"]]]}}),
    json.dumps(_RECORD | {"device": "cpu\nerror: forged", "model_hash": "\x1b[2J"}),
    json.dumps(_RECORD | {"options": {"x": float("nan")}}),
    "\x00",
    "{}",
    "null",
]


def _records(file: h5py.File, random: Random) -> None:
    runs = file["uns"].require_group("scvae").require_group("runs")
    name = _any(["embed", "denoise", "a\nerror: forged", "x" * 300], random)
    choice = random.integers(0, 8)
    if choice == 0:
        runs.create_group(name)
    elif choice == 1:
        runs[name] = np.arange(3)
    elif choice == 2:
        runs.create_dataset(name, data=b"\xff\xfe", dtype=h5py.string_dtype())
    else:
        runs[name] = _any(_RECORDS, random).replace("\x00", "")


def put_no_file(path: Path, choice: int, random: Random) -> None:
    """Put a pipe (0), a link to a device (1) or to itself (2), or a folder (3) in place of a file."""
    path.unlink()
    if choice == 0:
        os.mkfifo(path)
    elif choice == 1:
        path.symlink_to(_any(["/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem"], random))
    elif choice == 2:
        path.symlink_to(path)
    elif choice == 3:
        path.mkdir()


def _in_place(path: Path, random: Random) -> None:
    """Replace the file by something that is not a file, or by a file without contents."""
    choice = int(random.integers(0, 5))
    put_no_file(path, choice, random)
    if choice == 4:
        path.write_bytes(_any([b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(4096), b"PK\x03\x04"], random))


KINDS: dict[str, Kind] = {
    "flipped bits": _bytes(_flip_bits),
    "flipped bytes of the structure": _bytes(_flip_structure),
    "tail of zeros": _bytes(_zero_tail),
    "truncated": _bytes(_truncate),
    "block of zeros": _bytes(_zero_block),
    "block of noise": _bytes(_noise_block),
    "swapped blocks": _bytes(_swap_blocks),
    "pointers": _edit(_pointers),
    "indices": _edit(_indices),
    "values": _edit(_values),
    "shape of a sparse matrix": _edit(_shape),
    "attributes": _edit(_attributes),
    "groups and datasets exchanged": _edit(_kinds_of_items),
    "removed elements": _edit(_removed),
    "links": _edit(_links),
    "names of elements": _edit(_link_names),
    "names of cells and genes": _edit(_names),
    "huge declared sizes": _edit(_huge),
    "deep nesting": _edit(_deep),
    "columns": _edit(_columns),
    "records of runs": _edit(_records),
    "no file": _in_place,
}
