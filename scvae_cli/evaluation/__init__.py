"""Methods that several tools use to evaluate a model: baselines, repeated training, count thinning, and scores."""
