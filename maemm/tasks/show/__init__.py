"""``maemm show``: samples as the model gets them."""
