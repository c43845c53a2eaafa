"""Two thresholds for the off-manifold score, which says how unusual a latent position is.

The off-manifold score is the fraction of held-out cells that lie in denser parts of latent space than the position. A
position whose score exceeds OFF_MANIFOLD lies in a hole of latent space, where almost no cells are. If a model has
fewer than MIN_HELDOUT held-out cells, its training cells are used for the off-manifold score too.
"""

# A latent position is off the manifold of the cells (in a hole of latent space) if more than this fraction of the
# held-out cells lies in denser parts of latent space.
OFF_MANIFOLD = 0.95
# With nine held-out cells, the largest possible off-manifold score is (9 + 0.5)/(9 + 1) = 0.95, so no score could
# exceed OFF_MANIFOLD.
MIN_HELDOUT = 10
