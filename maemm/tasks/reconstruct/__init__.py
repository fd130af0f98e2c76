"""``maemm reconstruct``: pictures of reconstructions."""
