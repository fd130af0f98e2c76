"""Versions of maemm and of the contract that a plugin is written for; importing them loads no torch."""

__version__ = "0.1.0"
CONTRACT_VERSION = 1
