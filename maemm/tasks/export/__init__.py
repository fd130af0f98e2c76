"""``maemm export``: a model for other tools, each file checked against the model before it takes its name."""
