"""The versions of maemm and of the contract that plugins are written for. Importing this does not import torch."""

__version__ = "0.1.0"
CONTRACT_VERSION = 2
