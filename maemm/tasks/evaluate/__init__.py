"""``maemm evaluate``: a fine-tuned model on labelled data."""
