"""Thresholds for the off-manifold score: the fraction of held-out cells that lie at a higher density than a position.

A latent position whose score exceeds the first threshold lies in a hole of latent space. The second threshold is the
smallest number of held-out cells for which the score is computed from held-out cells alone.
"""

# A latent position lies in a hole (off the manifold) if more than this fraction of the held-out cells lies at a higher
# density.
OFF_MANIFOLD = 0.95
# With nine held-out cells the largest possible score is (9 + 0.5)/(9 + 1) = 0.95, so no position could be a hole.
MIN_HELDOUT = 10
