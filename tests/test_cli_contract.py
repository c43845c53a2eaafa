"""Properties on which pipelines depend: options, JSON keys, exit codes, streams, and interrupted trainings."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import anndata as ad
import h5py
import pytest
import typer
from command_line import TINY, run_cli, run_elsewhere, run_killed, run_ok
from conftest import Trained

from scvae_cli import __version__
from scvae_cli.cli.app import app
from scvae_cli.training.loop import Trainer

OUTPUTS = Path(__file__).parents[1] / "docs" / "outputs.md"

MODEL = "DATA --model/-m"
SHARED = "--config --layer --gene-symbols --allow-missing-genes --drop-empty --output/-o --key-added --force --device"
PRINTING = "--json --quiet/-q"

# Arguments (in capitals) and options of every command. Removing an option breaks pipelines; new options need no entry.
OPTIONS = {
    "check": f"DATA --layer --batch-key --likelihood {PRINTING}",
    "train": f"{MODEL} --layer --batch-key --n-top-genes --genes --drop-empty --likelihood --variance --decoder "
    "--n-latent --n-hidden --n-layers --beta --flat --max-epochs --batch-size --learning-rate --validation-fraction "
    f"--patience --seed --config --resume --force --device --precision --deterministic "
    f"--compile --threads {PRINTING}",
    "embed": f"{MODEL} --axes --refine --umap --leiden --resolution --n-neighbors --seed --color {SHARED} --plot "
    f"{PRINTING}",
    "annotate": f"{MODEL} --labels-key --unlabeled --coarse-key --fine-probability --reference --coverage "
    f"--unknown-rate --seed --subset {SHARED} --plot {PRINTING}",
    "denoise": f"{MODEL} --estimate --samples --library --genes --all-genes --groupby --batch-as "
    f"--with-zero-inflation --seed {SHARED} {PRINTING}",
    "interpolate": "DATA --groupby --from --to --via --from-cell --to-cell --time-key --steps --name --path --endpoint "
    f"--couple --paths --seed --model/-m --library --batch-as --gene-symbols --config {SHARED} --path-out --plot "
    f"{PRINTING}",
    "optimize": "DATA --toward --away --groupby --group --from-cell --name --steps --within --unconstrained "
    f"--max-length --starts --seed --model/-m --library --batch-as --gene-symbols --config {SHARED} --path-out --plot "
    f"{PRINTING}",
    "pseudotime": f"{MODEL} --groupby --root --to --root-cell --endpoint --name --seed --genes --subset "
    f"--gene-symbols --config {SHARED} --plot {PRINTING}",
    "score": f"{MODEL} --samples --simulated --fdr --seed --subset {SHARED} --plot {PRINTING}",
    "de": f"{MODEL} --groupby --group --reference --within --replicate-key --threshold --fdr --centre --sort --name "
    f"--cells --samples --seed --table --plot --gene-symbols --config {SHARED} {PRINTING}",
    "sample": "DATA --cells/-n --output/-o --from --groupby --group --prototype --avoid-holes --seed --model/-m "
    "--library --batch-as --mean --config --layer --gene-symbols --allow-missing-genes --drop-empty --plot --key-added "
    "--force --device "
    f"{PRINTING}",
    "perturb": "DATA --perturbation-key --control --treated --groupby --group --method --retrain --counts --seed "
    "--output/-o --model/-m --gene-symbols --config --layer --allow-missing-genes --drop-empty --plot "
    f"--key-added --force --device {PRINTING}",
    "map": "QUERY --false-alarms --seed --model/-m --batch-key --batch --reference-batch --layer --gene-symbols "
    f"--allow-missing-genes --drop-empty --config --output/-o --cells --key-added --force --device {PRINTING}",
    "sweep": "DATA --beta --n-latent --layer --batch-key --n-top-genes --genes --drop-empty --likelihood --variance "
    "--decoder --n-hidden --n-layers --max-epochs --batch-size --learning-rate --validation-fraction --patience --seed "
    "--config --models "
    f"--output/-o --plot --key-added --force --device --precision --threads {PRINTING}",
    "diagnose": f"{MODEL} --samples --refine --cells --quick --trainings --labels --seed {SHARED} --plot {PRINTING}",
    "info": f"MODEL|DATA --key-added {PRINTING}",
    "simulate": "OUT --cells --genes --branches --batches --depth --zero-inflation --true-mean --seed --force "
    f"{PRINTING}",
}

KEYS = {
    "check": "title n_cells n_genes matrices counts_source rounding notes zero_share median_library "
    "n_genes_modelled memory_gib cpu_minutes covariates obs confounded findings ok",
    "train": "model epochs seconds heldout_elbo active_units n_cells n_genes covariates",
    "embed": "output n_cells space n_dimensions n_latent refined_gain n_clusters missing_genes plot slots",
    "annotate": "output labels_key reference n_cells n_labeled labels n_unknown expected_accuracy "
    "expected_of_missing_types expected_of_missing_types_unmapped unknown_rate coverage heldout "
    "view_weights difference coarse missing_genes plot slots",
    "denoise": "output n_cells n_genes n_genes_modelled n_bytes decoded_with group_means missing_genes slots",
    "interpolate": "output name waypoints kind n_steps length groups_beyond fates_avoided fates_passed fates_via "
    "gap share_in_other_cloud turns off_manifold groups_passed steps_without_cells returns n_cells n_cells_on_path "
    "groups_on_path decoded_with genes missing_genes path_out plot slots",
    "optimize": "output name start toward away n_steps length score_start score_end best_score best_cell share_below "
    "extrapolated_from stopped through_cells start_cell starts off_manifold groups_passed steps_without_cells "
    "returns n_cells n_cells_on_path groups_on_path decoded_with genes missing_genes path_out plot "
    "slots",
    "pseudotime": "output name root ends root_cells n_cells branches root_branches n_components longest_steps "
    "unnamed_ends missing_genes plot slots",
    "score": "output n_cells mean_elbo mean_iwae mean_iwae_density mean_reconstruction mean_kl anomalies fdr "
    "heldout_below_05 n_heldout "
    "samples simulated missing_genes plot slots",
    "de": "output name groupby group reference within n_group n_reference n_left_out n_unlabeled replicates "
    "not_adjusted threshold fdr centre common_change near_common_share unchanged_share n_tested n_genes n_counted "
    "sort called up down genes missing_genes table plot slots",
    "sample": "output n_cells n_genes source prior_nats density_nats n_compared off_manifold rejected genes groupby "
    "group batch_as decoded_with mean agreement missing_genes plot slots",
    "perturb": "output group control treated method mean_shift_share scale change_detected learned_from n_cells "
    "n_genes off_manifold change_tests group_change_test no_better_than_mean model_accuracy "
    "model_agreement mean_accuracy checks group_check genes missing_genes plot slots",
    "map": "output model reference batch_key new_batches differences n_cells no_counterpart false_alarms "
    "seconds missing_genes slots",
    "sweep": "output varied criterion suggested best runs kept_molecules n_cells n_genes n_heldout reversals models "
    "plot slots",
    "diagnose": "output n_cells n_evaluated heldout beta level verdicts n_latent active_units kl_to_prior "
    "mutual_information total_correlation correlation correlated_axes holes gaps zeros variances condition "
    "active_condition rank_correlation embedding_rank_correlation embedding baselines stability missing_genes plot "
    "slots",
    "info MODEL": "model hash n_genes batches mapped_batches covariates labels facts config",
    "info DATA": "data runs other_runs",
    "simulate": "path n_cells n_genes n_branches n_batches seed true_mean",
}

LARGE_LIBRARIES = ("torch", "anndata", "scanpy", "pandas", "h5py", "matplotlib")


def commands(copied: Trained) -> dict[str, list[object]]:
    """A successful run of each command."""
    folder = copied.data.parent
    common = [copied.data, "-m", copied.model]
    return {
        "check": ["check", copied.data],
        "train": ["train", copied.data, "-m", folder / "other.scvae", *TINY],
        "embed": ["embed", *common],
        "annotate": ["annotate", *common, "--labels-key", "cell_type"],
        "denoise": ["denoise", *common],
        "interpolate": ["interpolate", *common, "--groupby", "batch", "--from", "batch_1", "--to", "batch_2"],
        "optimize": ["optimize", *common, "--toward", "gene_01", "--from-cell", "cell_003", "--max-length", "0.1"],
        "pseudotime": ["pseudotime", *common, "--groupby", "batch", "--root", "batch_1", "--to", "batch_2"],
        "score": ["score", *common, "--samples", "2"],
        "de": ["de", *common, "--groupby", "batch", "--group", "batch_1"],
        "sample": ["sample", *common, "-n", "60", "-o", folder / "new.h5ad"],
        # Cell types serve as perturbations, because their expression differs; batches serve as groups.
        "perturb": [
            *("perturb", *common, "--perturbation-key", "cell_type", "--control", "stem", "--treated", "mature_1"),
            *("--groupby", "batch", "--group", "batch_1", "--retrain", "-o", folder / "treated.h5ad"),
        ],
        "map": ["map", *common, "--batch-key", "batch", "--false-alarms", "0.2", "-o", folder / "new.scvae"],
        "sweep": ["sweep", copied.data, "--beta", "0.1,100", *(TINY[:2] + TINY[6:])],
        "diagnose": ["diagnose", *common, "--samples", "4", "--refine", "2", "--quick"],
        "info MODEL": ["info", copied.model],
        "info DATA": ["info", copied.data],
        "simulate": ["simulate", folder / "simulated.h5ad", "--cells", "20", "--genes", "10"],
    }


# --- options and keys -------------------------------------------------------------------------------------------------


def test_no_option_was_removed():
    for name, command in typer.main.get_command(app).commands.items():
        found = {"/".join(p.opts) if p.opts[0].startswith("-") else p.metavar for p in command.params}
        assert set(OPTIONS[name].split()) <= found, name


@pytest.mark.parametrize("case", KEYS)
def test_json_is_one_object_with_the_expected_keys(copied, case):
    outcome = run_ok(*commands(copied)[case], "--json")
    assert list(json.loads(outcome.out)) == KEYS[case].split()


@pytest.mark.parametrize("case", KEYS)
def test_json_keys_are_documented(case):
    row = next(line for line in OUTPUTS.read_text().splitlines() if line.startswith(f"| `{case}` |"))
    assert set(KEYS[case].split()) <= set(re.findall(r"`(\w+)`", row))


def test_json_of_interpolate_contains_the_documented_columns_of_genes(copied):
    values = json.loads(run_ok(*commands(copied)["interpolate"], "--json").out)
    columns = {"gene", "start", "end", "change", "direction", "monotonicity", "switch_step"}
    assert set(values["genes"][0]) == columns
    assert values["path_out"] is values["plot"] is None
    row = next(line for line in OUTPUTS.read_text().splitlines() if line.startswith("| `interpolate` |"))
    assert columns <= set(re.findall(r"`(\w+)`", row))


def test_json_of_de_contains_the_documented_columns_of_genes(copied):
    row = next(line for line in OUTPUTS.read_text().splitlines() if line.startswith("| `de` |"))
    genes = json.loads(run_ok(*commands(copied)["de"], "--json").out)["genes"]
    assert len(genes) == 20
    assert set(genes[0]) <= set(re.findall(r"`(\w+)`", row))


def test_json_of_sample_contains_the_documented_keys(copied):
    row = next(line for line in OUTPUTS.read_text().splitlines() if line.startswith("| `sample` |"))
    values = json.loads(run_ok(*commands(copied)["sample"], "--json").out)
    assert values["genes"] is None
    assert set(values["agreement"]) == {"samples", "real", "n_cells", "n_real"}
    columns = set(values["agreement"]) | set(values["agreement"]["real"])
    prototype = [*commands(copied)["sample"][:4], "--prototype", "-o", copied.data.parent / "prototype.h5ad"]
    values = json.loads(run_ok(*prototype, "--json").out)
    assert list(values) == KEYS["sample"].split()
    assert set(values["genes"][0]) == {"gene", "prototype", "average", "change"}
    assert columns | set(values["genes"][0]) <= set(re.findall(r"`(\w+)`", row))


def test_json_of_perturb_contains_the_documented_keys(copied):
    row = next(line for line in OUTPUTS.read_text().splitlines() if line.startswith("| `perturb` |"))
    values = json.loads(run_ok(*commands(copied)["perturb"], "--json").out)
    check = values["checks"][0]
    keys = {*values["mean_accuracy"], *values["genes"][0], *check, *check["predicted"]}
    assert keys <= set(re.findall(r"`(\w+)`", row))


def test_json_of_sweep_contains_the_documented_columns(copied):
    row = next(line for line in OUTPUTS.read_text().splitlines() if line.startswith("| `sweep` |"))
    runs = json.loads(run_ok(*commands(copied)["sweep"], "--json").out)["runs"]
    assert [run["beta"] for run in runs] == [0.1, 100]
    assert set(runs[0]) <= set(re.findall(r"`(\w+)`", row))


def test_json_of_diagnose_contains_the_documented_keys(copied):
    row = next(line for line in OUTPUTS.read_text().splitlines() if line.startswith("| `diagnose` |"))
    values = json.loads(run_ok(*commands(copied)["diagnose"], "--json").out)
    columns = set(values["verdicts"][0]) | set(values["gaps"]) | set(values["gaps"]["amortization"])
    columns |= set(values["zeros"]) | set(values["variances"]["worst"][0])
    columns |= set(values["embedding"]) | set(values["embedding"]["scores"][0])
    assert columns <= set(re.findall(r"`(\w+)`", row))
    assert values["zeros"].keys() == values["variances"].keys()


def test_info_lists_the_results_of_every_key_added(copied):
    for name in ("embed", "denoise"):
        run_ok(*commands(copied)[name], "--key-added", name)
    run_ok(*commands(copied)["score"])
    values = json.loads(run_ok("info", copied.data, "--json").out)
    assert list(values["runs"]) == ["score"]
    assert {key: list(runs) for key, runs in values["other_runs"].items()} == {
        name: [name] for name in ("embed", "denoise")
    }
    text = run_ok("info", copied.data).out
    assert "results of 3 runs" in text
    assert all(f"\n{line}: model " in text for line in ("score", "embed --key-added embed"))
    selected = json.loads(run_ok("info", copied.data, "--key-added", "embed", "--json").out)
    assert (list(selected["runs"]), selected["other_runs"]) == (["embed"], {})
    assert "with --key-added none" in run_ok("info", copied.data, "--key-added", "none").out


def test_info_shows_chosen_names_and_every_run_of_one_name(copied):
    ordered = ["pseudotime", copied.data, "-m", copied.model, "--root-cell", ad.read_h5ad(copied.data).obs_names[0]]
    run_ok(*ordered, "--name", "my order: 1/2")
    run_ok(*commands(copied)["score"], "--key-added", "other")
    with h5py.File(copied.data, "r+") as file:
        runs = file["uns/scvae/runs"]
        # A user may copy a record under another name.
        runs["score --key-added other"] = file["uns/other/runs/score"][()]
    text = run_ok("info", copied.data).out
    assert "results of 3 runs" in text
    assert "\npseudotime --name 'my order: 1/2': model " in text
    assert text.count("\nscore --key-added other: model ") == 2


def test_json_of_check_is_an_object_if_the_data_is_refused(copied):
    outcome = run_cli("check", copied.data, "--layer", "none", "--json")
    assert outcome.code == 3
    values = json.loads(outcome.out)
    assert values["ok"] is False
    assert set(values["findings"][0]) == {"level", "message", "hint"}


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", KEYS)
def test_result_goes_to_stdout_and_next_step_to_stderr(copied, case):
    outcome = run_ok(*commands(copied)[case])
    assert outcome.out.strip()
    assert "next: " not in outcome.out
    assert "Traceback" not in outcome.err
    steps = [line for line in outcome.err.splitlines() if line.startswith("next: ")]
    assert len(steps) == (0 if case.startswith("info") else 1)


@pytest.mark.parametrize("case", KEYS)
def test_quiet_prints_only_the_result(copied, case):
    outcome = run_ok(*commands(copied)[case], "--quiet")
    assert outcome.err == ""
    assert outcome.out.strip()


def test_version_option_prints_the_version():
    assert run_ok("--version").out == f"scvae {__version__}\n"


def test_unknown_command_gives_exit_code_2():
    assert run_cli("unheard-of").code == 2


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_help(name):
    for parameter in typer.main.get_command(app).commands[name].params:
        assert parameter.help, f"{name} {parameter.name}"


def test_help_imports_no_large_libraries():
    script = (
        "import sys\nfrom scvae_cli.cli.app import run\nfor name in sys.argv[1:]:\n"
        "    code = run([*name.split(), '--help'])\n"
        f"    print(f'ended: {{name!r}}', code, *[m for m in {LARGE_LIBRARIES} if m in sys.modules])"
    )
    names = ["", *OPTIONS]
    done = run_elsewhere(script, *names)
    ended = [line for line in done.stdout.splitlines() if line.startswith("ended: ")]
    assert ended == [f"ended: {name!r} 0" for name in names]
    assert done.stdout.count("Usage") == len(names)


def test_embed_denoise_interpolate_and_pseudotime_do_not_import_numba(copied):
    script = (
        "import json, sys\nfrom scvae_cli.cli.app import run\ncodes = [run(a) for a in json.loads(sys.argv[1])]\n"
        "print(codes, [m for m in ('numba', 'torch._dynamo', 'scipy.optimize') if m in sys.modules])"
    )
    command_lines = [commands(copied)[name] for name in ("embed", "denoise", "interpolate", "pseudotime")]
    done = run_elsewhere(script, json.dumps([[str(word) for word in words] for words in command_lines]))
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0] []", done.stdout + done.stderr


def test_train_imports_neither_pandas_nor_anndata(copied):
    script = (
        "import sys\nfrom scvae_cli.cli.app import run\ncode = run(sys.argv[1:])\n"
        "print(code, [m for m in ('pandas', 'anndata') if m in sys.modules])"
    )
    done = run_elsewhere(script, "train", copied.data, "-m", copied.data.parent / "m.scvae", "--max-epochs", "1")
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr


def test_module_runs_as_a_command():
    done = run_elsewhere(
        "import runpy, sys; sys.argv[0] = 'scvae'; runpy.run_module('scvae_cli', run_name='__main__')", "--version"
    )
    assert done.stdout == f"scvae {__version__}\n"


# --- interrupted trainings --------------------------------------------------------------------------------------------


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def interrupt_in_epoch(monkeypatch, epoch: int, number: signal.Signals) -> None:
    """Send this process a signal when the held-out cells are evaluated at the end of an epoch."""
    evaluate, calls = Trainer.evaluate, []

    def evaluate_interrupted(self: Trainer) -> tuple[float, float]:
        calls.append(None)
        if len(calls) == epoch:
            os.kill(os.getpid(), number)
        return evaluate(self)

    monkeypatch.setattr(Trainer, "evaluate", evaluate_interrupted)


@pytest.mark.usefixtures("handled_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_resumed_training_gives_the_same_weights(copied, monkeypatch, number):
    command = ["train", copied.data, *TINY, "--max-epochs", "6"]
    uninterrupted, resumed = copied.data.with_name("whole.scvae"), copied.data.with_name("parts.scvae")
    run_ok(*command, "-m", uninterrupted)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 3, number)
        outcome = run_cli(*command, "-m", resumed)
    assert outcome.code == 128 + number
    assert outcome.out == ""
    assert "interrupted after epoch 3" in outcome.err
    assert "--resume" in outcome.err
    assert not resumed.exists()
    assert "resumed after epoch 3" in run_ok(*command, "-m", resumed, "--resume").err
    assert weights(resumed) == weights(uninterrupted)
    assert not list(resumed.parent.glob(".parts*"))


def test_same_command_gives_the_same_weights(copied):
    second = copied.data.with_name("again.scvae")
    run_ok("train", copied.data, "-m", second, *TINY)
    assert weights(second) == weights(copied.model)


@pytest.mark.usefixtures("handled_signals")
def test_resume_with_other_options_is_refused(copied, monkeypatch):
    folder = copied.data.with_name("other.scvae")
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 1, signal.SIGINT)
        assert run_cli("train", copied.data, *TINY, "-m", folder).code == 130
    outcome = run_cli("train", copied.data, *TINY, "-m", folder, "--resume", "--n-latent", "5")
    assert outcome.code == 4
    assert "used other data or other options" in outcome.err


# Moments of a training that replaces a model: during the training, while the new folder is written, at the exchange.
KILLED = {
    "in an epoch": ("after", "scvae_cli.training.loop:Trainer:evaluate", 2),
    "writing the model": ("before", "os:fsync", 3),
    "before the swap": ("before", "scvae_cli.model.bundle:exchange", 1),
    "after the swap": ("after", "scvae_cli.model.bundle:exchange", 1),
}


@pytest.mark.parametrize("moment", KILLED)
def test_killed_training_leaves_complete_old_or_new_model(copied, moment):
    command = ["train", copied.data, "-m", copied.model, *TINY, "--seed", "1", "--force"]
    old = weights(copied.model)
    run_killed(KILLED[moment], *command)
    run_ok("embed", copied.data, "-m", copied.model)
    assert (weights(copied.model) == old) == (moment != "after the swap")
    run_ok(*command)
    assert weights(copied.model) != old
    assert {path.name for path in copied.data.parent.iterdir()} == {"cells.h5ad", "cells.scvae"}


def test_killed_first_training_leaves_no_model(copied):
    folder = copied.data.with_name("new.scvae")
    run_killed(KILLED["writing the model"], "train", copied.data, "-m", folder, *TINY)
    assert not folder.exists()
    assert run_cli("embed", copied.data, "-m", folder).code == 4
    run_ok("train", copied.data, "-m", folder, *TINY)
