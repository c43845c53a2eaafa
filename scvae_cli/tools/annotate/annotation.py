"""Labels of cells from labeled cells: classifiers, calibration, prediction sets, and cells of no known type.

The labeled cells are divided into parts (`held_out_parts`), with one classifier per part that learns from the other
parts. Other cells get the mean of the log probabilities of these classifiers. The weights of the views, the prediction
sets and the p-values are calibrated on the predictions of held-out cells.

Shapes: n cells, m labeled cells that train the classifiers, h of them that are held out once, c labels, v views,
k parts, j coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import log_softmax

from scvae_cli.progress import Progress
from scvae_cli.session import Session
from scvae_cli.tools.annotate.back_off import BackOff, back_off, back_off_quality
from scvae_cli.tools.annotate.classifier import Regression, log_odds, pool_weights, pooled, regression
from scvae_cli.tools.annotate.conformal import HeldOutScores, enough_cells
from scvae_cli.tools.annotate.difference import Difference, difference, some_cells
from scvae_cli.tools.annotate.held_out_parts import PARTS, chosen_cells, parts_of
from scvae_cli.tools.annotate.known_labels import KnownLabels
from scvae_cli.tools.annotate.novelty import Metric, metric_of_all, metric_of_labels, novelty
from scvae_cli.tools.annotate.options import AnnotateOptions
from scvae_cli.tools.annotate.quality import Quality, confusion, prediction_quality, reliability
from scvae_cli.tools.annotate.result import Annotation
from scvae_cli.tools.annotate.views import GENES, INVERSE_PENALTY, VIEWS, Coordinates, Scaling, coordinates, fit_scaling

# Number of cells predicted at once.
_BLOCK_CELLS = 4096


@dataclass(frozen=True)
class _Predicted:
    """Log probabilities, mask of the prediction sets, and p-values of "unknown"; shapes (n, c), (n, c) and (n,)."""

    log_p_nc: np.ndarray
    set_nc: np.ndarray
    p_n: np.ndarray


@dataclass(frozen=True)
class _Classifiers:
    """The classifiers of all parts: for each part and view a regression, and for each part the metric of the labels.

    The regressions of the last view use the scaled genes. With few labels, this needs far fewer multiplications than
    principal components of the genes would need.
    """

    scaling: Scaling
    regressions_kv: list[list[Regression]]
    metrics_k: list[Metric]
    weight_v: np.ndarray
    everything: Metric
    label_scores: HeldOutScores
    novelty_scores: HeldOutScores

    def by_view(self, part: int, views: tuple[Any, ...]) -> np.ndarray:
        """Compute the log probabilities of each view by the classifier of a part, shape (v, n, c)."""
        return _by_view(self.regressions_kv[part], views)

    def predict(self, cells: Coordinates, coverage: float) -> _Predicted:
        """Predict the labels of cells that the classifiers have not seen."""
        views = self.scaling.views_of_genes(cells)
        n_parts = len(self.regressions_kv)
        log_p_knc = np.stack([pooled(self.weight_v, self.by_view(k, views)) for k in range(n_parts)])
        odds_knc = np.stack([log_odds(log_p_nc) for log_p_nc in log_p_knc])
        novelty_kn = np.stack([novelty(views[0], metric, self.everything) for metric in self.metrics_k])
        log_p_nc = log_softmax(log_p_knc.mean(axis=0), axis=1)
        label_p_nc = np.stack(
            [self.label_scores.p_values(odds_knc[:, :, c], c) for c in range(log_p_nc.shape[1])], axis=1
        )
        label_n, p_n = log_p_nc.argmax(1), np.empty(len(log_p_nc))
        for c in np.unique(label_n):
            p_n[label_n == c] = self.novelty_scores.p_values(-novelty_kn[:, label_n == c], c)
        return _Predicted(log_p_nc, label_p_nc > 1 - coverage, p_n)


def annotate(
    session: Session, known: KnownLabels, options: AnnotateOptions, *, reference: Session | None = None
) -> Annotation:
    """Predict the label of every cell of a session.

    Parameters
    ----------
    known
        Labels of the cells of the reference, or of the session if there is no reference.
    reference
        Session with the labeled cells, if they are other cells; its labels are `known`.

    Raises
    ------
    DataError
        If a cell has no finite position.
    ModelError
        If the model was trained by an earlier version, which did not compute the map to expression space.
    """
    labeled_session = session if reference is None else reference
    missing = set(session.missing_genes) | set(labeled_session.missing_genes)
    shared_g = np.flatnonzero([gene not in missing for gene in session.model.genes]) if missing else None
    library = float(session.model.vae.reference_library)
    query = coordinates(session, library=library, shared_g=shared_g)
    labeled = query if reference is None else coordinates(reference, library=library, shared_g=shared_g)
    # The labels are in the order of their first cells, so that results do not depend on the names of the labels.
    rank_c = known.ranks()
    names, code_n = tuple(known.names[c] for c in np.argsort(rank_c)), np.append(rank_c, -1)[known.code_n]
    chosen_m = chosen_cells(code_n, len(names), seed=options.seed)
    code_m = code_n[chosen_m]
    size_c = np.bincount(code_n[code_n >= 0])
    weight_m = (size_c / np.bincount(code_m))[code_m]
    trained = labeled.cells(chosen_m)
    everywhere_nj = query.state_nj if reference is None else np.concatenate([trained.state_nj, query.state_nj])
    classifiers, held_out, quality = _learn(
        trained, everywhere_nj, code_m, weight_m, names, options, progress=session.progress
    )
    predicted = _predict(classifiers, query, options.coverage, progress=session.progress)
    held_m = parts_of(code_m, seed=options.seed) >= 0
    if reference is None:
        # The cells that trained classifiers keep the prediction of the classifier that did not see them.
        rows = chosen_m[held_m]
        predicted.log_p_nc[rows], predicted.set_nc[rows], predicted.p_n[rows] = (
            held_out.log_p_nc, held_out.set_nc, held_out.p_n,
        )  # fmt: skip
    probability_nc = np.exp(predicted.log_p_nc[:, rank_c]).astype(np.float32)
    backed_off: BackOff | None = None
    if known.coarse is not None:
        held_p_hc, held_code_h = np.exp(held_out.log_p_nc[:, rank_c]), np.argsort(rank_c)[code_m[held_m]]
        least = options.fine_probability
        of_coarse = back_off_quality(held_p_hc, held_code_h, weight_m[held_m], known.coarse, least)
        backed_off = back_off(probability_nc, known.coarse, least, of_coarse)
    return Annotation(
        labels=known.names,
        probability_nc=probability_nc,
        set_nc=predicted.set_nc[:, rank_c],
        p_n=predicted.p_n,
        unknown_n=predicted.p_n <= options.unknown_rate,
        labeled_n=code_n >= 0 if reference is None else np.zeros(len(predicted.p_n), dtype=bool),
        labeled_c=size_c[rank_c],
        coverage=options.coverage,
        unknown_rate=options.unknown_rate,
        view_weights=dict(zip(VIEWS, (float(weight) for weight in classifiers.weight_v), strict=True)),
        quality=replace(quality, confusion_cc=quality.confusion_cc[np.ix_(rank_c, rank_c)]),
        difference=_difference(
            classifiers.scaling,
            (trained, np.flatnonzero(held_m), held_out.log_p_nc.argmax(1)),
            (query, np.flatnonzero(code_n < 0) if reference is None else np.arange(len(predicted.p_n)), predicted),
            seed=options.seed,
        ),
        values=known.values,
        back_off=backed_off,
    )


def _difference(
    scaling: Scaling,
    labeled: tuple[Coordinates, np.ndarray, np.ndarray],
    others: tuple[Coordinates, np.ndarray, _Predicted],
    *,
    seed: int,
) -> Difference | None:
    """Compare held-out labeled cells with the cells without a label.

    Both are given as coordinates, indices of the cells in these, and predictions: the predicted labels of the labeled
    cells, and the predictions for all cells of the coordinates of the others.
    """
    labeled_at = some_cells(np.arange(len(labeled[1])), seed=seed)
    others_at = some_cells(others[1], seed=seed)
    if not len(others_at):
        return None
    x_nj, y_nj = (
        np.concatenate(scaling.views(cells.cells(rows))[1:], axis=1)
        for cells, rows in ((labeled[0], labeled[1][labeled_at]), (others[0], others_at))
    )
    return difference(x_nj, labeled[2][labeled_at], y_nj, others[2].log_p_nc[others_at].argmax(1), seed=seed)


def _learn(
    trained: Coordinates,
    everywhere_nj: np.ndarray,
    code_m: np.ndarray,
    weight_m: np.ndarray,
    names: tuple[str, ...],
    options: AnnotateOptions,
    *,
    progress: Progress,
) -> tuple[_Classifiers, _Predicted, Quality]:
    """Train the classifiers of all parts, and calibrate them on the cells that they have not seen.

    Returns the classifiers, the predictions of the held-out cells, in their order, and the quality of the predictions.
    """
    n_labels = len(names)
    part_m = parts_of(code_m, seed=options.seed)
    scaling = fit_scaling(trained)
    views = scaling.views(trained)
    offset_j, scale = scaling.state_center_j, scaling.state_scale
    everything = metric_of_all((everywhere_nj - offset_j) / scale)
    log_p_vmc = np.empty((len(VIEWS), len(code_m), n_labels))
    novelty_m = np.empty(len(code_m))
    regressions_kv, metrics_k = [], []
    with progress("Learning labels", PARTS) as advance:
        for part in range(PARTS):
            learn_m, test_m = part_m != part, part_m == part
            regressions = [
                regression(x_mj[learn_m], code_m[learn_m], weight_m[learn_m], inverse_penalty)
                for x_mj, inverse_penalty in zip(views, INVERSE_PENALTY, strict=True)
            ]
            metric = metric_of_labels(views[0][learn_m], code_m[learn_m], n_labels)
            tested = tuple(x_mj[test_m] for x_mj in views)
            log_p_vmc[:, test_m] = _by_view(regressions, tested)
            if test_m.any():
                novelty_m[test_m] = novelty(tested[0], metric, everything)
            regressions_kv.append([*regressions[:GENES], scaling.on_genes(regressions[GENES])])
            metrics_k.append(metric)
            advance()
    held_m = part_m >= 0
    code_h, part_h, weight_h, log_p_vhc = code_m[held_m], part_m[held_m], weight_m[held_m], log_p_vmc[:, held_m]
    weight_v = pool_weights(log_p_vhc, code_h, weight_h)
    log_p_hc = pooled(weight_v, log_p_vhc)
    odds_hc, label_h, usual_h = log_odds(log_p_hc), log_p_hc.argmax(1), -novelty_m[held_m]
    own_h = odds_hc[np.arange(len(code_h)), code_h]
    label_scores = HeldOutScores(own_h, code_h, part_h, n_labels, enough_cells(1 - options.coverage))
    novelty_scores = HeldOutScores(usual_h, label_h, part_h, n_labels, enough_cells(options.unknown_rate))
    label_p_hc = np.stack([label_scores.p_values_of_held_out(odds_hc[:, c], c) for c in range(n_labels)], axis=1)
    novelty_p_h = np.empty(len(code_h))
    for c in np.unique(label_h):
        novelty_p_h[label_h == c] = novelty_scores.p_values_of_held_out(usual_h, int(c))[label_h == c]
    found = _Predicted(log_p_hc, label_p_hc > 1 - options.coverage, novelty_p_h)
    classifiers = _Classifiers(scaling, regressions_kv, metrics_k, weight_v, everything, label_scores, novelty_scores)
    return classifiers, found, _quality(found, log_p_vhc[GENES], code_h, weight_h, options)


def _by_view(regressions: list[Regression], views: tuple[Any, ...]) -> np.ndarray:
    return np.stack([found.log_probabilities(x_nj) for found, x_nj in zip(regressions, views, strict=True)])


def _quality(
    found: _Predicted, genes_log_p_mc: np.ndarray, code_m: np.ndarray, weight_m: np.ndarray, options: AnnotateOptions
) -> Quality:
    share_m, p_mc = weight_m / weight_m.sum(), np.exp(found.log_p_nc)
    label_m = p_mc.argmax(1)
    return Quality(
        n_cells=len(code_m),
        labels=prediction_quality(p_mc, code_m, weight_m),
        genes=prediction_quality(np.exp(genes_log_p_mc), code_m, weight_m),
        confusion_cc=confusion(label_m, code_m, weight_m, p_mc.shape[1]),
        reliability=reliability(p_mc.max(1), label_m == code_m, weight_m),
        coverage=float(found.set_nc[np.arange(len(code_m)), code_m] @ share_m),
        set_size=float(found.set_nc.sum(1) @ share_m),
        false_alarms=float((found.p_n <= options.unknown_rate) @ share_m),
    )


def _predict(classifiers: _Classifiers, cells: Coordinates, coverage: float, *, progress: Progress) -> _Predicted:
    """Predict the labels of all cells, in blocks."""
    n, parts = len(cells.state_nj), []
    with progress("Annotating", n) as advance:
        for start in range(0, n, _BLOCK_CELLS):
            rows = np.arange(start, min(n, start + _BLOCK_CELLS))
            parts.append(classifiers.predict(cells.cells(rows), coverage))
            advance(len(rows))
    return _Predicted(
        np.concatenate([part.log_p_nc for part in parts]),
        np.concatenate([part.set_nc for part in parts]),
        np.concatenate([part.p_n for part in parts]),
    )
