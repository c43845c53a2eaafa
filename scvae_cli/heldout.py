"""What held-out cells decide, everywhere alike: when there are enough of them, and where a hole begins."""

# A place is a hole, off the manifold, when more than this share of the held-out cells lies in denser places.
OFF_MANIFOLD = 0.95
# Outside of nine cells a place scores (9 + 0.5)/(9 + 1) at most, which is not above 0.95: nothing would be a hole.
MIN_HELDOUT = 10
