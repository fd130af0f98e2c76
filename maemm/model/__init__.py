"""From tokens to losses: the model, how it is built from a recipe, and parts that work with any modality."""
