"""``maemm convert``: published weights to maemm's format, and back."""
