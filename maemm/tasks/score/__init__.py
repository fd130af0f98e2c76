"""``maemm score``: the reconstruction error of every sample."""
