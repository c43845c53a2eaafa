"""The version, for whoever must name it without importing the package's API."""

__version__ = "0.2.0"
