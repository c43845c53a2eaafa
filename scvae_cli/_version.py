"""The version of scvae, in a module that can be imported without the Python API."""

__version__ = "0.2.0"
