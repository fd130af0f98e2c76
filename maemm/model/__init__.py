"""From tokens to losses: the model, how it is built from a recipe, and the parts that fit any modality."""
