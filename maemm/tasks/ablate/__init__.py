"""``maemm ablate``: compare parts of a recipe by equal short trainings."""
