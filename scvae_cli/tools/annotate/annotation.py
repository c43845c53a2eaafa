"""Prediction of labels from labeled cells: probabilities, prediction sets, and cells that belong to no known type.

The labeled cells are divided into parts, as in a cross-validation, and `learning` trains one classifier for each part.
A labeled cell keeps the prediction of the classifier that has not seen this cell. For a cell without a label, the log
probabilities of all classifiers are averaged. The probabilities, prediction sets and p-values are calibrated on the
predictions for held-out labeled cells.

Letters in array shapes: n cells, h held-out labeled cells, c labels, v views of a cell, k parts of the labeled cells, j
coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax

from scvae_cli.data.known_labels import KnownLabels
from scvae_cli.errors import ModelError
from scvae_cli.progress import Progress
from scvae_cli.session import Session
from scvae_cli.tools.annotate.back_off import BackOff, CoarseLabels, back_off, back_off_quality
from scvae_cli.tools.annotate.batch_novelty import known_type_p
from scvae_cli.tools.annotate.classifier import Pool, fit_pool, log_odds
from scvae_cli.tools.annotate.conformal import HeldOutScores, enough_cells
from scvae_cli.tools.annotate.difference import Difference, difference, some_cells
from scvae_cli.tools.annotate.expected import Expected, expected
from scvae_cli.tools.annotate.held_out_novelty import HeldOutNovelty, held_out_novelty
from scvae_cli.tools.annotate.learned_file import learned_of
from scvae_cli.tools.annotate.learning import Learned, Lesson, learn
from scvae_cli.tools.annotate.novelty import Metric, metric_of_all
from scvae_cli.tools.annotate.options import AnnotateOptions
from scvae_cli.tools.annotate.quality import Quality, confusion, prediction_quality, reliability
from scvae_cli.tools.annotate.result import Annotation
from scvae_cli.tools.annotate.views import GENES, VIEWS, Coordinates, coordinates, without_mapping

# Number of cells whose labels are predicted at once.
_BLOCK_CELLS = 4096
_NOT_FINITE = "the model gives positions of cells that are not finite"


@dataclass(frozen=True)
class _Predicted:
    """Predictions for n cells: labels, prediction sets, and how unusual the cells are.

    Parameters
    ----------
    log_p_nc
        Log probability of each label, shape (n, c).
    set_nc
        Mask of the labels in the prediction set of each cell, shape (n, c).
    p_n
        p-value of the hypothesis that a cell belongs to a known type, shape (n,).
    """

    log_p_nc: np.ndarray
    set_nc: np.ndarray
    p_n: np.ndarray


@dataclass(frozen=True)
class _Calibrated:
    """Classifiers that were calibrated on held-out labeled cells.

    Parameters
    ----------
    learned
        The classifiers.
    pool
        Weight of each view (matrix of coordinates of the cells) in the predictions, and bias of each label.
    label_scores
        Log odds of the labels of held-out cells, with which the log odds of other cells are compared.
    novelty
        Novelty of held-out cells, with which the novelty of other cells is compared.
    held_out, quality
        Predictions for the held-out cells, and the quality of these predictions.
    """

    learned: Learned
    pool: Pool
    label_scores: HeldOutScores
    novelty: HeldOutNovelty
    held_out: _Predicted
    quality: Quality

    def predict(self, cells: Coordinates, coverage: float) -> tuple[np.ndarray, np.ndarray]:
        """Predict the labels of cells that the classifiers have not seen.

        Returns
        -------
        Log probability of each label, and mask of the labels in the prediction set of each cell, of shape (n, c) each.
        """
        learned = self.learned
        views = learned.scaling.views_of_genes(cells)
        parts = range(len(learned.metrics_k))
        log_p_knc = np.stack([self.pool.log_probabilities(learned.by_view(k, views)) for k in parts])
        odds_knc = np.stack([log_odds(log_p_nc) for log_p_nc in log_p_knc])
        log_p_nc = log_softmax(log_p_knc.mean(axis=0), axis=1)
        label_p_nc = np.stack(
            [self.label_scores.p_values(odds_knc[:, :, c], c) for c in range(log_p_nc.shape[1])], axis=1
        )
        return log_p_nc, label_p_nc > 1 - coverage


def annotate(
    session: Session,
    known: KnownLabels | None,
    options: AnnotateOptions,
    *,
    coarse: CoarseLabels | None = None,
    reference: Session | None = None,
    new_batch_n: np.ndarray | None = None,
) -> Annotation:
    """Predict the label of every cell of a session.

    Parameters
    ----------
    known
        Labels of the cells of `reference`, or of `session` if `reference` is None. If `known` is None, labels are
        predicted by the classifiers that were saved with the model.
    coarse
        Coarse labels, which replace uncertain labels. If `coarse` is None, no label is replaced.
    reference
        Session with the labeled cells. If `reference` is None, the labeled cells are in `session`.
    new_batch_n
        Index of the batch of each cell that is in a batch without labeled cells; −1 for other cells. If `new_batch_n`
        is None, no cell is in such a batch.

    Raises
    ------
    DataError
        If a cell has no finite position, or if the model was trained with the labels of all labeled cells.
    ModelError
        If the model was trained by an earlier version, which did not compute the map to expression space, if its saved
        classifiers are damaged, or if the position of a cell is not finite.
    """
    library, model_genes = float(session.model.vae.reference_library), session.model.genes
    missing = set(session.missing_genes) | set(() if reference is None else reference.missing_genes)
    here_g = np.asarray([gene not in missing for gene in model_genes])
    shared_g = np.flatnonzero(here_g) if missing and known is not None else None
    query = coordinates(session, library=library, shared_g=shared_g)
    lesson: Lesson | None = None
    if known is None:
        learned = learned_of(session.model).with_mean_of(np.flatnonzero(~here_g))
    else:
        labeled = query if reference is None else coordinates(reference, library=library, shared_g=shared_g)
        lesson = learn(reference or session, labeled, known, seed=options.seed)
        learned = lesson.learned
    found = _calibrated(learned, _everything(learned, lesson, query, reference=reference), options)
    log_p_nc, set_nc = _predict(found, query, options.coverage, progress=session.progress)
    label_n = log_p_nc.argmax(1)
    if new_batch_n is None:
        new_batch_n = np.full(len(label_n), -1)
    ways = [(found.novelty, found.novelty.of(learned.scaling.states(query)))]
    if session.model.vae.n_mapped and (rows := np.flatnonzero(new_batch_n >= 0)).size:
        unmapped = without_mapping(session, query, rows)
        everything = _everything(learned, lesson, unmapped, reference=reference)
        held = held_out_novelty(learned, everything, found.novelty.scores.code_m, rate=options.unknown_rate)
        ways.append((held, held.of(learned.scaling.states(unmapped))))
    predicted = _Predicted(log_p_nc, set_nc, known_type_p(ways, label_n, new_batch_n))
    unmapped_p_n = known_type_p(ways[1:], label_n, new_batch_n) if len(ways) > 1 else None
    labeled_n = np.zeros(len(predicted.p_n), dtype=bool)
    if known is not None and lesson is not None and reference is None:
        labeled_n = known.code_n >= 0
        # A held-out labeled cell keeps the prediction of the classifier that has not seen this cell.
        rows = lesson.rows_m[lesson.held_m]
        predicted.log_p_nc[rows], predicted.set_nc[rows], predicted.p_n[rows] = (
            found.held_out.log_p_nc, found.held_out.set_nc, found.held_out.p_n,
        )  # fmt: skip
    rank_c = learned.rank_c
    probability_nc = np.exp(predicted.log_p_nc[:, rank_c]).astype(np.float32)
    backed_off: BackOff | None = None
    if coarse is not None:
        held_p_hc, held_code_h = np.exp(found.held_out.log_p_nc[:, rank_c]), np.argsort(rank_c)[learned.code_h]
        least = options.fine_probability
        of_coarse = back_off_quality(held_p_hc, held_code_h, learned.weight_h, coarse, least)
        backed_off = back_off(probability_nc, coarse, least, of_coarse)

    def expected_with(p_n: np.ndarray) -> Expected | None:
        if labeled_n.all():
            return None
        probability_n, rate = probability_nc[~labeled_n].max(1), options.unknown_rate
        return expected(probability_n, p_n[~labeled_n], found.held_out.p_n, learned.weight_h, rate=rate)

    return Annotation(
        labels=learned.names,
        probability_nc=probability_nc,
        set_nc=predicted.set_nc[:, rank_c],
        p_n=predicted.p_n,
        unknown_n=predicted.p_n <= options.unknown_rate,
        labeled_n=labeled_n,
        labeled_c=learned.size_c[rank_c],
        coverage=options.coverage,
        unknown_rate=options.unknown_rate,
        view_weights=dict(zip(VIEWS, (float(weight) for weight in found.pool.weight_v), strict=True)),
        quality=replace(found.quality, confusion_cc=found.quality.confusion_cc[np.ix_(rank_c, rank_c)]),
        difference=_difference(found, query, predicted, labeled_n, options.seed),
        expected=expected_with(predicted.p_n),
        expected_unmapped=None if unmapped_p_n is None else expected_with(unmapped_p_n),
        values=learned.values,
        back_off=backed_off,
    )


def _everything(learned: Learned, lesson: Lesson | None, query: Coordinates, *, reference: Session | None) -> Metric:
    """Return the Mahalanobis metric of all cells: the labeled cells and the cells of the query.

    Saved classifiers contain only the held-out cells, which then represent all labeled cells.
    """
    with np.errstate(all="ignore"):  # the classifiers of a model from a stranger may have any finite numbers
        state_nj = learned.scaling.states(query)
    if not np.isfinite(state_nj).all():
        raise ModelError(_NOT_FINITE, "train the model again")
    if lesson is None:
        represented = np.arange(learned.n_trained) % len(learned.state_hj)
        return metric_of_all(np.concatenate([learned.state_hj[represented], state_nj]))
    if reference is None:
        return metric_of_all(state_nj)
    return metric_of_all(np.concatenate([learned.scaling.states(lesson.trained), state_nj]))


def _calibrated(learned: Learned, everything: Metric, options: AnnotateOptions) -> _Calibrated:
    """Calibrate classifiers on held-out labeled cells."""
    code_h, part_h, weight_h = learned.code_h, learned.part_h, learned.weight_h
    n_labels = len(learned.names)
    pool = fit_pool(learned.log_p_vhc, code_h, weight_h)
    log_p_hc = pool.log_probabilities(learned.log_p_vhc)
    odds_hc, label_h = log_odds(log_p_hc), log_p_hc.argmax(1)
    own_h = odds_hc[np.arange(len(code_h)), code_h]
    label_scores = HeldOutScores(own_h, code_h, part_h, n_labels, enough_cells(1 - options.coverage))
    label_p_hc = np.stack([label_scores.p_values_of_held_out(odds_hc[:, c], c) for c in range(n_labels)], axis=1)
    novelty = held_out_novelty(learned, everything, label_h, rate=options.unknown_rate)
    held_out = _Predicted(log_p_hc, label_p_hc > 1 - options.coverage, novelty.p_h)
    quality = _quality(held_out, learned.log_p_vhc[GENES], code_h, weight_h, options)
    return _Calibrated(learned, pool, label_scores, novelty, held_out, quality)


def _difference(
    found: _Calibrated, query: Coordinates, predicted: _Predicted, labeled_n: np.ndarray, seed: int
) -> Difference | None:
    """Compare held-out labeled cells with the cells without a label.

    The result is None if all cells have labels.
    """
    labeled_at = some_cells(np.arange(len(found.held_out.p_n)), seed=seed)
    others_at = some_cells(np.flatnonzero(~labeled_n), seed=seed)
    if not len(others_at):
        return None
    of_labeled_n, of_others_n = (
        log_p_nc.argmax(1) for log_p_nc in (found.held_out.log_p_nc[labeled_at], predicted.log_p_nc[others_at])
    )
    x_nd = found.learned.compared_hd[labeled_at].astype(np.float64)
    with np.errstate(all="ignore"):  # the classifiers of a model from a stranger may have any finite numbers
        y_nd = found.learned.scaling.compared(query.cells(others_at)).astype(np.float64)
    if not np.isfinite(y_nd).all():
        raise ModelError(_NOT_FINITE, "train the model again")
    return difference(x_nd, of_labeled_n, y_nd, of_others_n, seed=seed)


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


def _predict(
    found: _Calibrated, cells: Coordinates, coverage: float, *, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Predict the labels and prediction sets of all cells, in blocks, as `_Calibrated.predict` does."""
    n, parts = len(cells.state_nj), []
    with progress("Annotating", n) as advance:
        for start in range(0, n, _BLOCK_CELLS):
            rows = np.arange(start, min(n, start + _BLOCK_CELLS))
            parts.append(found.predict(cells.cells(rows), coverage))
            advance(len(rows))
    log_p_blocks, set_blocks = zip(*parts, strict=True)
    return np.concatenate(log_p_blocks), np.concatenate(set_blocks)
