"""Package discovery only (the rest is in pyproject.toml): a new plugin or recipe folder is packaged without a list."""

from setuptools import find_namespace_packages, find_packages, setup

plugins = ["maemm_plugins", *(f"maemm_plugins.{name}" for name in find_packages("plugins"))]
configs = ["maemm_configs", *(f"maemm_configs.{name}" for name in find_namespace_packages("configs"))]
setup(packages=[*find_packages(include=["maemm", "maemm.*"]), *plugins, *configs])
