"""``maemm diagnose``: what a model has learned, in metrics and pictures, beside the same network untrained."""
