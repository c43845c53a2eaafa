"""Questions that take more than one training to answer."""
