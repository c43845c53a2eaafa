"""Output to terminals and pipes of every kind: neither closed pipes nor unusual encodings stop a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from command_line import run_ok
from conftest import cells
from hypothesis import given
from hypothesis import strategies as st

from scvae_cli.cli import streams
from scvae_cli.errors import DataError

ENCODINGS = ("ascii", "latin-1", "cp1252", "koi8-r", "utf-8", "utf-8-sig", "shift_jis", "gbk")

# Print a text that is larger than a pipe's buffer, and write a file that would get the number of a closed stream.
_PROGRAM = """
import os, sys
from scvae_cli.cli.streams import replace_streams
from scvae_cli.errors import DataError
streams = replace_streams()
file = open(sys.argv[1], "w")
print("→ 3 × 4 \\udcff", file=sys.stderr)
for _ in range(20_000):
    print("→ é", flush=True)
file.write("whole")
file.close()
try:
    streams.finish()
except DataError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
_SCVAE = (sys.executable, "-m", "scvae_cli")


def shell(line: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of sh; the arguments are "$@"."""
    command = ["sh", "-c", line, "sh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, env=os.environ | environment)


@given(
    text=st.text(st.characters(codec=None, exclude_categories=()) | st.sampled_from("→×β…≤")),
    encoding=st.sampled_from(ENCODINGS),
)
def test_any_text_can_be_written_in_any_encoding(text, encoding):
    streams.register_plain_characters()
    written = text.encode(encoding, streams.ERRORS)
    try:
        expected = text.encode(encoding)
    except UnicodeEncodeError:
        return
    assert written == expected, "characters of the encoding are not changed"


def test_special_characters_are_replaced_by_ascii():
    streams.register_plain_characters()
    assert "2 × 3 → β…".encode("ascii", streams.ERRORS) == b"2 x 3 -> beta..."
    assert "\udcff.h5ad".encode("utf-8", streams.ERRORS) == b"\xff.h5ad", "the bytes of a file name are kept"


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("2>&-", 0),
        (">&-", 0),
        ("<&- >&- 2>&-", 0),
        ("2>/dev/full", 0),
        (">/dev/full", DataError.exit_code),
        ("2>&1 >/dev/full", DataError.exit_code),
    ],
)
def test_closed_or_full_streams_do_not_affect_written_files(tmp_path, ending, code):
    done = shell(f'"$@" {ending}', sys.executable, "-c", _PROGRAM, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "whole"
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert (b"No space left on device" in done.stderr) == (ending == ">/dev/full")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_reader_that_ends_early_causes_no_error(tmp_path, encoding):
    line = '("$@"; echo $? >"$4.code") | head -n 1'
    done = shell(line, sys.executable, "-c", _PROGRAM, tmp_path / "file", PYTHONIOENCODING=encoding)
    assert (tmp_path / "file").read_text() == "whole"
    assert (tmp_path / "file.code").read_text() == "0\n", done.stderr
    assert b"Traceback" not in done.stderr


def test_non_blocking_pipe_receives_all_output():
    read, write = os.pipe()
    os.set_blocking(write, False)
    stream = streams.PatientStream(write)
    with subprocess.Popen(["sh", "-c", "sleep 0.2; wc -c"], stdin=read, stdout=subprocess.PIPE) as reader:
        os.close(read)
        assert stream.write(b"x" * 1_000_000) == 1_000_000
        os.close(write)
        assert int(reader.communicate()[0]) == 1_000_000
    assert stream.error is None


@pytest.mark.slow
def test_check_works_in_a_terminal_without_utf_8(tmp_path):
    data = tmp_path / os.fsdecode(b"n\xffme\xe9.h5ad")
    cells().write_h5ad(data)
    done = shell('"$@"', *_SCVAE, "check", data, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"n\xffme\xe9.h5ad: 120 cells x 40 genes")
    assert shell('"$@" | head -n 1 >/dev/null', *_SCVAE, "--help").stderr == b""


def test_file_name_that_is_not_utf_8_gives_valid_json(tmp_path):
    data = tmp_path / os.fsdecode(b"n\xff.h5ad")
    cells().write_h5ad(data)
    out = run_ok("check", data, "--json").out
    assert out.isascii()
    assert json.loads(out)["title"] == data.name
