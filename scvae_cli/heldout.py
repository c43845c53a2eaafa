"""Two thresholds for the off-manifold score of a latent position.

The score is the fraction of the held-out cells that lie in denser parts of latent space than the position. If the score
exceeds OFF_MANIFOLD, the position lies in a hole of latent space. If a model has fewer than MIN_HELDOUT held-out cells,
its training cells are used for the score too.
"""

# A latent position lies in a hole (off the manifold) if more than this fraction of the held-out cells lies at a higher
# density.
OFF_MANIFOLD = 0.95
# With nine held-out cells the largest possible score is (9 + 0.5)/(9 + 1) = 0.95, so no position could be a hole.
MIN_HELDOUT = 10
