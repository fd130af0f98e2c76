"""Package discovery only (the rest is in pyproject.toml): a new plugin or recipe folder is packaged without a list."""

from setuptools import find_namespace_packages, find_packages, setup

configs = find_namespace_packages("importable", include=["maemm_configs", "maemm_configs.*"])
setup(packages=[*find_packages("importable"), *configs])
