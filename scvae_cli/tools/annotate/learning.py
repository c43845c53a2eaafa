"""Training of classifiers on labeled cells, and their predictions for held-out labeled cells.

The labeled cells are divided into parts (`held_out_parts`). For each part, one classifier learns from the cells of all
other parts. The predictions for the held-out cells calibrate the classifiers (`annotation`).

Letters in array shapes: n cells, m labeled cells that train the classifiers, h held-out labeled cells, c labels, v
views of a cell, k parts of the labeled cells, j coordinates, g genes, d coordinates by which cells are
compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scvae_cli.data.known_labels import KnownLabels, hidden_from_training
from scvae_cli.errors import DataError
from scvae_cli.session import Session
from scvae_cli.tools.annotate.classifier import Regression, regression
from scvae_cli.tools.annotate.held_out_parts import PARTS, chosen_cells, parts_of
from scvae_cli.tools.annotate.novelty import Metric, metric_of_labels, nearest
from scvae_cli.tools.annotate.views import GENES, INVERSE_PENALTY, VIEWS, Coordinates, Scaling, fit_scaling


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Classifiers that were trained on labeled cells, and their predictions for held-out labeled cells.

    The labels are in the order in which they first occur among the cells, so results do not depend on label names.

    Parameters
    ----------
    names, rank_c
        Names of the labels in the order in which they are shown, and the index of each of these labels in all other
        fields of this class.
    values
        Values of the labels, in the order of `names`, if the labels are numbers or booleans; otherwise None.
    size_c
        Number of labeled cells of each label.
    scaling, n_trained
        Map from the coordinates of a cell to its views, and number of labeled cells that trained the classifiers.
    regressions_kv, metrics_k
        A logistic regression for each part and view, and the Mahalanobis metric of the labels for each part. The
        regressions of the last view take scaled genes as input. With few labels, scaled genes need far fewer
        multiplications than principal components of the genes.
    log_p_vhc, nearest_h, state_hj
        For each held-out cell, the log probabilities of the labels in each view, the squared distance to the nearest
        known type, and the first view, all from the classifier that has not seen the cell.
    compared_hd
        Coordinates of each held-out cell, by which labeled cells are compared with other cells (`difference`).
    code_h, part_h, weight_h
        For each held-out cell, the index of its label, its part, and the number of labeled cells that it represents.
    """

    names: tuple[str, ...]
    rank_c: np.ndarray
    values: np.ndarray | None
    size_c: np.ndarray
    scaling: Scaling
    n_trained: int
    regressions_kv: list[list[Regression]]
    metrics_k: list[Metric]
    log_p_vhc: np.ndarray
    nearest_h: np.ndarray
    state_hj: np.ndarray
    compared_hd: np.ndarray
    code_h: np.ndarray
    part_h: np.ndarray
    weight_h: np.ndarray

    def by_view(self, part: int, views: tuple[Any, ...]) -> np.ndarray:
        """Compute the log probabilities of the labels in each view, by the classifier of one part; shape (v, n, c)."""
        return _by_view(self.regressions_kv[part], views)

    def with_mean_of(self, missing_g: np.ndarray) -> Learned:
        """Return classifiers for data that lack some genes; missing values are replaced by the mean of each gene."""

        def corrected(fitted: Regression) -> Regression:
            at_mean_c = self.scaling.gene_center_g[missing_g] @ fitted.coefficient_jc[missing_g]
            return replace(fitted, intercept_c=fitted.intercept_c + at_mean_c)

        center_g = self.scaling.gene_center_g.copy()
        center_g[missing_g] = 0.0  # the data have zeros in place of missing genes
        return replace(
            self,
            scaling=replace(self.scaling, gene_center_g=center_g),
            regressions_kv=[[*of_v[:GENES], corrected(of_v[GENES])] for of_v in self.regressions_kv],
        )


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Trained classifiers, and the labeled cells that trained them.

    Parameters
    ----------
    learned
        The classifiers.
    rows_m
        Indices of the cells that trained the classifiers, shape (m,).
    held_m
        Mask of the cells that were held out from one of the classifiers, shape (m,).
    trained
        Coordinates of the m cells that trained the classifiers.
    """

    learned: Learned
    rows_m: np.ndarray
    held_m: np.ndarray
    trained: Coordinates


def learn(session: Session, labeled: Coordinates, known: KnownLabels, *, seed: int) -> Lesson:
    """Divide the labeled cells into parts, and predict the labels of each part by a classifier of the other parts.

    Parameters
    ----------
    session, labeled, known
        Session with the labeled cells, and the coordinates and labels of its cells. Some cells may have no label.
    seed
        Random seed with which cells are chosen and assigned to parts.

    Raises
    ------
    DataError
        If the model was trained with the labels of all labeled cells.
    """
    rank_c = known.ranks()
    n_labels, code_n = len(rank_c), np.append(rank_c, -1)[known.code_n]
    rows_m = chosen_cells(code_n, n_labels, seed=seed)
    code_m, size_c = code_n[rows_m], np.bincount(code_n[code_n >= 0])
    weight_m = (size_c / np.bincount(code_m))[code_m]
    part_m = parts_of(code_m, unseen_m=_unseen(session)[rows_m], seed=seed)
    held_m = part_m >= 0
    if not held_m.any():
        raise DataError(
            f"{session.store.title}: the model was trained with the labels of all labeled cells, so predictions "
            "cannot be tested on held-out cells",
            "give other labeled cells (--reference), or train with more labeled cells",
        )
    trained = labeled.cells(rows_m)
    scaling = fit_scaling(trained)
    views = scaling.views(trained)
    log_p_vmc, nearest_m = np.empty((len(VIEWS), len(code_m), n_labels)), np.empty(len(code_m))
    regressions_kv, metrics_k = [], []
    with session.progress("Learning labels", PARTS) as advance:
        for part in range(PARTS):
            learn_m, test_m = part_m != part, part_m == part
            regressions = [
                regression(x_mj[learn_m], code_m[learn_m], weight_m[learn_m], inverse_penalty)
                for x_mj, inverse_penalty in zip(views, INVERSE_PENALTY, strict=True)
            ]
            metric = metric_of_labels(views[0][learn_m], code_m[learn_m], n_labels)
            if test_m.any():
                tested = tuple(x_mj[test_m] for x_mj in views)
                log_p_vmc[:, test_m] = _by_view(regressions, tested)
                nearest_m[test_m] = nearest(tested[0], metric)
            regressions_kv.append([*regressions[:GENES], scaling.on_genes(regressions[GENES])])
            metrics_k.append(metric)
            advance()
    learned = Learned(
        names=known.names,
        rank_c=rank_c,
        values=known.values,
        size_c=size_c,
        scaling=scaling,
        n_trained=len(rows_m),
        regressions_kv=regressions_kv,
        metrics_k=metrics_k,
        log_p_vhc=log_p_vmc[:, held_m],
        nearest_h=nearest_m[held_m],
        state_hj=views[0][held_m],
        compared_hd=scaling.compared(trained.cells(np.flatnonzero(held_m))),
        code_h=code_m[held_m],
        part_h=part_m[held_m],
        weight_h=weight_m[held_m],
    )
    return Lesson(learned=learned, rows_m=rows_m, held_m=held_m, trained=trained)


def _unseen(session: Session) -> np.ndarray:
    """Return a mask of the cells whose labels were certainly not used to train the model, shape (n,)."""
    config, names = session.model.config, session.counts.cell_names
    if not config.train.label_weight:
        return np.ones(len(names), dtype=bool)
    unseen_n: np.ndarray = hidden_from_training(names, config.train.seed) | session.model.held_out(names)
    return unseen_n


def _by_view(regressions: list[Regression], views: tuple[Any, ...]) -> np.ndarray:
    return np.stack([found.log_probabilities(x_nj) for found, x_nj in zip(regressions, views, strict=True)])
