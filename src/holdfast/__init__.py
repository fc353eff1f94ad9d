"""Holdfast runs AI agents so that no run ever hangs."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("holdfast")
