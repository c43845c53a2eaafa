"""Classifiers of known labels. A model contains the classifiers so that `annotate` needs no labeled cells."""

from __future__ import annotations

from dataclasses import replace

from scvae_cli.data.known_labels import known_labels
from scvae_cli.model.bundle import Model
from scvae_cli.session import Session
from scvae_cli.tools.annotate.learned_file import stored
from scvae_cli.tools.annotate.learning import learn
from scvae_cli.tools.annotate.views import coordinates


def with_labels(session: Session) -> Model:
    """Train classifiers of the known labels on the training data; return the model with the classifiers."""
    model, chosen = session.model, session.model.config.data
    assert chosen.labels_key is not None, "the model was trained with labels"
    # The user has seen the warnings about labels before the training, so they are not repeated.
    known = known_labels(
        session.store, chosen.labels_key, unlabeled=chosen.unlabeled, kept=session.kept, warn=lambda _: None
    )
    labeled = coordinates(session, library=float(model.vae.reference_library))
    learned = learn(session, labeled, known, seed=model.config.train.seed).learned
    model.vae.to("cpu")
    return replace(model, labels=stored(learned))
