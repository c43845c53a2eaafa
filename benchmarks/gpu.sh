#!/usr/bin/env bash
# Run all measurements that need a GPU, on one GPU, in at most nine minutes. Needs Linux.
#
#   benchmarks/gpu.sh [--dry-run] [--cpu] [PART...]
#
# Parts, in this order: tests deterministic roofline throughput quality. Without a PART, all parts run. Each part has its
# own time limit. Results are written as soon as they are known, so that a stopped run keeps its results: summary.md
# (how each part ended), log.txt (everything that was printed), and a table for each benchmark.
#
#   --dry-run   print each part's command and limit, and run nothing
#   --cpu       run every part on the CPU with tiny data, to test this script itself
#
# Environment variables:
#   PYTHON       the interpreter that has torch (python3)
#   WHEELS       a folder of wheels that PYTHON lacks; they are used for this run only
#   OUT          the folder of the results (benchmarks/results/gpu; with --cpu build/gpu)
#   SCVI_PYTHON  an interpreter with scvi-tools, to measure its throughput, too
#
# Exit codes: 0 every part succeeded, 1 a part failed, 2 usage, 3 a package is missing, 5 there is no CUDA device.

set -euo pipefail
cd "$(dirname "$0")/.."

# Time limits in seconds. Together with the grace periods below, they are less than nine minutes.
declare -A LIMIT=(
  [install]=15 [check]=20 [tests]=85 [deterministic]=60 [roofline]=60 [throughput]=70 [simulate]=70 [quality]=140
)
GRACE=2
# Names of the tables that the parts write.
declare -A RESULT=(
  [deterministic]=determinism [roofline]=roofline [throughput]=throughput [quality]=time_to_quality
)

PYTHON=${PYTHON:-python3}
DEVICE=cuda
DRY_RUN=
PARTS=()
for argument in "$@"; do
  case $argument in
    --dry-run) DRY_RUN=yes ;;
    --cpu) DEVICE=cpu ;;
    -h | --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' benchmarks/gpu.sh
      exit 0
      ;;
    tests | deterministic | roofline | throughput) PARTS+=("$argument") ;;
    quality) PARTS+=(simulate quality) ;;
    *)
      echo "error: there is no part or option '$argument'; see benchmarks/gpu.sh --help" >&2
      exit 2
      ;;
  esac
done
[[ ${#PARTS[@]} -gt 0 ]] || PARTS=(tests deterministic roofline throughput simulate quality)

if [[ $DEVICE == cuda ]]; then
  OUT=${OUT:-benchmarks/results/gpu}
else
  OUT=${OUT:-build/gpu}
  # Compiling for the CPU would take minutes and is no test of the script. One thread is fast on a busy machine, too.
  export CUDA_VISIBLE_DEVICES= TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1
fi
# nproc counts no more cores than OMP_NUM_THREADS allows.
CORES=$(nproc)
THREADS=$((CORES < 8 ? CORES : 8))
SIMULATED=simulated.h5ad
# A folder that is removed at the end; a dry run has none.
WORK='$WORK'

# Set COMMAND, the command of a part.
command_of() {
  local beside=(--only scvae) table=$OUT/${RESULT[$1]:-}
  [[ -z ${SCVI_PYTHON:-} ]] || beside=(--scvi-python "$SCVI_PYTHON")
  case $1-$DEVICE in
    tests-*) COMMAND=(env "SCVAE_TEST_DEVICE=$DEVICE" "$PYTHON" -m pytest -p no:cacheprovider tests/test_gpu.py) ;;
    deterministic-*) COMMAND=("$PYTHON" benchmarks/determinism.py --device "$DEVICE" --threads "$THREADS") ;;&
    deterministic-cpu) COMMAND+=(--cells 300 --genes 50 --max-epochs 2) ;;&
    deterministic-*) COMMAND+=(--results "$table.md") ;;
    roofline-*) COMMAND=("$PYTHON" benchmarks/roofline.py --device "$DEVICE") ;;&
    roofline-cuda) COMMAND+=(--batch-size 128 2048) ;;&
    roofline-cpu) COMMAND+=(--genes 100 --batch-size 32 --segments 1) ;;&
    roofline-*) COMMAND+=(--results "$table.md") ;;
    throughput-*) COMMAND=("$PYTHON" benchmarks/throughput.py "${beside[@]}" --threads "$THREADS") ;;&
    throughput-cuda) COMMAND+=(--gpu --genes 2000 --cells 200000 --epochs 3 --rounds 2) ;;&
    throughput-cpu) COMMAND+=(--genes 400 --cells 1000 --epochs 2 --rounds 1) ;;&
    throughput-*) COMMAND+=(--results "$table.json") ;;
    simulate-*) COMMAND=("$PYTHON" -m scvae_cli simulate "$WORK/$SIMULATED" --quiet) ;;&
    simulate-cuda) COMMAND+=(--cells 1000000 --genes 2000 --depth 360) ;;
    simulate-cpu) COMMAND+=(--cells 600 --genes 100 --depth 100) ;;
    quality-*) COMMAND=("$PYTHON" benchmarks/time_to_quality.py --only scvae --no-embedding --seeds 0) ;;&
    quality-cuda) COMMAND+=(--gpu --test-share 0.01) ;;&
    quality-cpu) COMMAND+=(--test-share 0.1 --samples 5) ;;&
    quality-*) COMMAND+=(--threads "$THREADS" --results "$table.json" "$WORK/$SIMULATED") ;;
  esac
}

if [[ -n $DRY_RUN ]]; then
  total=$((LIMIT[install] + LIMIT[check] + 2 * GRACE))
  echo "install, at most ${LIMIT[install]} s: ${WHEELS:-nothing}"
  echo "check, at most ${LIMIT[check]} s: the packages that $PYTHON has, and the device"
  for part in "${PARTS[@]}"; do
    command_of "$part"
    echo "$part, at most ${LIMIT[$part]} s: ${COMMAND[*]}"
    total=$((total + LIMIT[$part] + GRACE))
  done
  echo "in all at most $total s; results in $OUT"
  exit 0
fi

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$WORK/tmp"
export TMPDIR=$WORK/tmp PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

limited() {
  timeout --kill-after="$GRACE" "$@"
}

# Print the device and the versions; exit if a package or the device is missing.
check() {
  limited "${LIMIT[check]}" "$PYTHON" - "$DEVICE" <<'PYTHON_CODE'
import importlib
import platform
import sys

needed = "torch numpy scipy numba pandas h5py anndata sklearn safetensors typer rich pytest".split()
missing = []
for name in needed:
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name} ({error})")
if missing:
    print("error: packages are missing:", "; ".join(missing), file=sys.stderr)
    print("hint: put their wheels into a folder and name it in WHEELS", file=sys.stderr)
    sys.exit(3)

import torch

versions = f"torch {torch.__version__}, Python {platform.python_version()}"
if sys.argv[1] == "cpu":
    print(f"Tried out on the CPU with tiny data; {versions}.")
elif torch.cuda.is_available():
    name, cuda = torch.cuda.get_device_name(), torch.version.cuda
    triton = "with Triton" if importlib.util.find_spec("triton") else "without Triton"
    print(f"Measured on {name}; {versions}, CUDA {cuda}, {triton}.")
else:
    print(f"error: there is no CUDA device: torch {torch.__version__} sees none", file=sys.stderr)
    print("hint: try the script itself with benchmarks/gpu.sh --cpu", file=sys.stderr)
    sys.exit(5)
PYTHON_CODE
}

if [[ -n ${WHEELS:-} ]]; then
  install=("$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$WORK/site" "$WHEELS"/*.whl)
  if ! limited "${LIMIT[install]}" "${install[@]}"; then
    echo "error: the wheels in $WHEELS could not be installed" >&2
    exit 3
  fi
  PYTHONPATH=$WORK/site:$PYTHONPATH
fi
machine=$(check) || {
  status=$?
  [[ $status -ne 124 ]] || echo "error: $PYTHON did not import its packages within ${LIMIT[check]} s" >&2
  exit "$status"
}

mkdir -p "$OUT"
SUMMARY=$OUT/summary.md
LOG=$OUT/log.txt
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
{
  echo "Written by \`benchmarks/gpu.sh\`. $machine Commit $commit, $(date -u +%Y-%m-%d)."
  printf '\n| part | limit | took | outcome |\n|---|--:|--:|---|\n'
} | tee "$SUMMARY"
: >"$LOG"

failed=0
for part in "${PARTS[@]}"; do
  command_of "$part"
  printf '\n== %s: %s\n' "$part" "${COMMAND[*]}" >>"$LOG"
  printed=$(wc -l <"$LOG")
  # Files of an earlier run must not be taken as results of this one.
  [[ -z ${RESULT[$part]:-} ]] || rm -f "$OUT/${RESULT[$part]}".{md,json}
  began=$SECONDS
  status=0
  limited "${LIMIT[$part]}" "${COMMAND[@]}" >>"$LOG" 2>&1 </dev/null || status=$?
  case $status in
    0) outcome=ok ;;
    124 | 137) outcome="stopped at its limit" ;;
    *) outcome="failed with $status" ;;
  esac
  [[ $status -eq 0 ]] || failed=1
  echo "| $part | ${LIMIT[$part]} s | $((SECONDS - began)) s | $outcome |" | tee -a "$SUMMARY"
  [[ $status -eq 0 ]] || tail -n "+$((printed + 1))" "$LOG" | tail -n 15 >&2
done
echo
echo "results in $OUT"
exit $failed
