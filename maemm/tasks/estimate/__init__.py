"""``maemm estimate``: what a training costs, before it runs."""
