"""Thresholds based on held-out cells: the off-manifold score that marks a hole, and the least number of these cells."""

# A latent position lies in a hole (off the manifold) if more than this fraction of the held-out cells lies at a higher
# density.
OFF_MANIFOLD = 0.95
# With nine held-out cells the largest possible score is (9 + 0.5)/(9 + 1) = 0.95, so no position could be a hole.
MIN_HELDOUT = 10
