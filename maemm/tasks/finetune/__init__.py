"""``maemm finetune``: train a classifier from a pre-trained encoder."""
