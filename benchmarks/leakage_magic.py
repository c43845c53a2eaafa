"""Counts denoised by MAGIC, at the library size of each cell; called by `leakage.py`.

    python leakage_magic.py KEPT.npz -o magic.npz

Counts are scaled to a common library size. In the variant `root`, as in the documentation of MAGIC, MAGIC smooths the
square roots of the scaled counts, and the result is squared. In the variant `plain`, MAGIC smooths the scaled counts
themselves. MAGIC is run with its default settings. This script needs magic-impute, and no code of this project.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path


def main() -> None:
    """Denoise and write both matrices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    import magic
    import numpy as np
    import scipy.sparse as sp

    x_ng = sp.load_npz(args.data).toarray().astype(np.float64)
    library_n1 = x_ng.sum(1, keepdims=True)
    scaled_ng = x_ng / library_n1 * np.median(library_n1)

    def smoothed(values_ng: np.ndarray) -> np.ndarray:
        return np.asarray(magic.MAGIC(random_state=args.seed, n_jobs=args.threads, verbose=0).fit_transform(values_ng))

    with contextlib.redirect_stdout(sys.stderr):
        made = {"root": smoothed(np.sqrt(scaled_ng)) ** 2, "plain": np.maximum(smoothed(scaled_ng), 0)}
    made = {name: (value_ng / value_ng.sum(1, keepdims=True) * library_n1).astype(np.float32)
            for name, value_ng in made.items()}  # fmt: skip
    np.savez(args.output, **made)
    print(json.dumps({"magic": magic.__version__}))


if __name__ == "__main__":
    main()
