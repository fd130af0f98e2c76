"""``maemm diagnose``: what a model has learned, in figures and pictures, beside the same network untrained."""
