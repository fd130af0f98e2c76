"""``maemm pretrain``: train a recipe."""
