"""Invalid options are refused with a one-line message, a hint and the right exit code, and no file is changed."""

from __future__ import annotations

import json

import anndata as ad
import pytest
import torch
from command_line import run_cli, run_ok
from workbench import DEVICE, USAGE, assert_refused

from scvae_cli.gene_list import parse_genes

# --- options and configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "fragment", "options"),
    [
        (USAGE, "--n-latent is 0", ["--n-latent", "0"]),
        (USAGE, "--beta is -1", ["--beta", "-1"]),
        (USAGE, "--learning-rate is nan", ["--learning-rate", "nan"]),
        (USAGE, "--learning-rate is inf", ["--learning-rate", "inf"]),
        (USAGE, "--validation-fraction is 0", ["--validation-fraction", "0"]),
        (USAGE, "--validation-fraction is 1", ["--validation-fraction", "1"]),
        (USAGE, "--likelihood is 'gauss'", ["--likelihood", "gauss"]),
        (USAGE, "--genes is 'ACTB'", ["--genes", "ACTB"]),
        (USAGE, "both given", ["--genes", "all", "--n-top-genes", "10"]),
        (USAGE, "--batch-size is 1", ["--batch-size", "1"]),
        (USAGE, "--max-epochs is 0", ["--max-epochs", "0"]),
        (USAGE, "--patience is 0", ["--patience", "0"]),
        (USAGE, "--seed is -1", ["--seed", "-1"]),
        (USAGE, "--threads is 0", ["--threads", "0"]),
        (USAGE, "--precision is 'fp8'", ["--precision", "fp8"]),
        (DEVICE, "--precision tf32 needs an NVIDIA GPU", ["--precision", "tf32"]),
        (DEVICE, "'banana' is not a device", ["--device", "banana"]),
        (DEVICE, "not a device that scvae runs on", ["--device", "meta"]),
    ],
)
def test_invalid_values_are_refused(bench, code, fragment, options):
    assert_refused(bench.folder, bench.train_args(*options), code, fragment)


@pytest.mark.parametrize("fdr", ["nan", "0", "1.5"])
def test_invalid_false_discovery_rates_are_refused(bench, fdr):
    assert_refused(bench.folder, bench.args("score", "--fdr", fdr), USAGE, "--fdr is")


@pytest.mark.parametrize("verb", ["train", "embed"])
def test_gpu_that_is_not_available_is_refused(bench, monkeypatch, verb):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:3"):
        arguments = bench.train_args("--device", device) if verb == "train" else bench.args(verb, "--device", device)
        assert_refused(bench.folder, arguments, DEVICE, f"{device} was requested")


@pytest.mark.parametrize("device", ["cpu:7", "meta", "gpu"])
def test_unsupported_devices_are_refused(bench, device):
    assert "cuda:N" in assert_refused(bench.folder, bench.args("embed", "--device", device), DEVICE, "is not a device")


@pytest.mark.parametrize("verb", ["train", "embed"])
def test_device_without_float64_is_refused(bench, verb):
    arguments = bench.train_args("--device", "mps") if verb == "train" else bench.args(verb, "--device", "mps")
    assert "--device cpu" in assert_refused(bench.folder, arguments, DEVICE, "mps has no float64 numbers")


def test_gpu_number_that_is_not_available_is_refused(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert_refused(bench.folder, bench.args("embed", "--device", "cuda:3"), DEVICE, "cuda:3 is not available")


@pytest.mark.parametrize(
    ("fragment", "text"),
    [
        ("is not TOML", "[model\n"),
        ("is not a text in UTF-8", b"\xff\xfe"),
        ("unknown key 'n_laten'", "[model]\nn_laten = 3\n"),
        ("unknown section [modle]", "[modle]\nn_latent = 3\n"),
        ("is outside a section", "n_latent = 3\n"),
        ("--n-latent is 'three'", '[model]\nn_latent = "three"\n'),
        ("--n-latent is True", "[model]\nn_latent = true\n"),
        ("--n-latent is 2.5", "[model]\nn_latent = 2.5\n"),
        ("--n-layers is 0", "[model]\nn_layers = 0\n"),
        ("error: eased_dropout is 2", "[train]\neased_dropout = 2.0\n"),
    ],
)
def test_invalid_config_files_are_refused(bench, fragment, text):
    # Flags would win over the file.
    arguments = ["train", bench.data, "-m", bench.folder / "other.scvae", "--config", bench.file("run.toml", text)]
    assert_refused(bench.folder, arguments, USAGE, fragment)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[model]\nlabel-weight = 3\n", "write label_weight under [train]"),
        ("[train]\nlabel-weight = 3\n", "write label_weight under [train]"),
        ("label_weight = 3\n", "write label_weight under [train]"),
        ("[data]\nlabel_wieght = 3\n", "write label_weight under [train]"),
        ("[train]\nlabel_wieght = 3\n", "write label_weight under [train]"),
        ("[model]\n'--batch-key' = 'donor'\n", "write batch_key under [data]"),
        ("[interpolate]\nsteps = 3\n", "write n_steps under [interpolate]"),
        ("[train]\nsteps = 3\n", "write n_steps under [interpolate] or [optimize]"),
        ("[interpolate]\nfrom = 'HSC'\n", "write groups under [interpolate]"),
        # Several commands have this option; the command that reads the file comes first.
        ("[model]\nseed = 3\n", "write seed under [train]"),
        ("[trian]\nbeta = 3\n", "did you mean [train]?"),
        ("model = [1, 2]\n", "write [model] on a line above the keys"),
        ("[[model]]\nseed = 3\n", "write [model] on a line above the keys"),
        ("[model]\nxyzzy = 3\n", "known keys: decoder, "),
    ],
)
def test_hint_for_a_misplaced_key_names_section_and_spelling(bench, text, hint):
    arguments = ["train", bench.data, "-m", bench.folder / "other.scvae", "--config", bench.file("run.toml", text)]
    assert assert_refused(bench.folder, arguments, USAGE, "run.toml").startswith(f"hint: {hint}")


def test_byte_order_mark_in_config_file_and_gene_list_is_ignored(bench):
    config = bench.file("run.toml", b"\xef\xbb\xbf[train]\nmax_epochs = 2\n")
    names = ad.read_h5ad(bench.data).var_names[:30]
    genes = bench.file("genes.txt", b"\xef\xbb\xbf" + "\r\n".join(names).encode())
    arguments = bench.train_args("--config", config, "--genes", f"@{genes}", "--json")
    assert json.loads(run_ok(*arguments).out)["n_genes"] == 30
    assert parse_genes("--genes", f"@{genes}") == tuple(names)


def test_missing_config_file_is_refused(bench):
    assert_refused(bench.folder, bench.train_args("--config", bench.folder / "no.toml"), USAGE, "cannot read")


@pytest.mark.parametrize(
    ("fragment", "arguments"),
    [
        ("--n-latent is 'three'", ["train", "cells.h5ad", "--n-latent", "three"]),
        ("--steps is 1", ["interpolate", "cells.h5ad", "--steps", "1"]),
        ("--samples is 0", ["score", "cells.h5ad", "--samples", "0"]),
        ("--simulated is 99", ["score", "cells.h5ad", "--simulated", "99"]),
        ("--samples is -1", ["denoise", "cells.h5ad", "--samples", "-1"]),
        ("--seed is -1", ["interpolate", "cells.h5ad", "--seed", "-1"]),
        ("--seed is -1", ["pseudotime", "cells.h5ad", "--seed", "-1"]),
        ("--cells is 'many'", ["simulate", "new.h5ad", "--cells", "many"]),
    ],
    ids=str,
)
def test_invalid_values_are_refused_before_a_file_is_opened(bench, fragment, arguments):
    assert_refused(bench.folder, arguments, USAGE, fragment)


@pytest.mark.parametrize(
    "arguments", [["train"], ["embed", "cells.h5ad", "--no-such-option"], ["unheard-of", "cells.h5ad"]], ids=" ".join
)
def test_usage_errors_give_exit_code_2(arguments):
    outcome = run_cli(*arguments)
    assert outcome.code == USAGE
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert "Error" in outcome.err


@pytest.mark.parametrize(
    ("verb", "option", "right"),
    [("train", option, "--model (-m)") for option in ("-o", "--output")]
    + [("sweep", option, "--models") for option in ("-m", "--model")],
)
def test_option_of_another_command_is_answered_with_the_option_that_names_the_model(verb, option, right):
    outcome = run_cli(verb, "cells.h5ad", option, "x.scvae")
    assert outcome.code == 2
    assert outcome.out == ""
    [hint] = [line for line in outcome.err.splitlines() if line.startswith("hint: ")]
    assert hint.endswith(f"that {right} names")
