"""``maemm retrieve``: partners of one modality in another."""
