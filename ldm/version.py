"""The version of the package, read by pip, `ldm --version` and the settings of every picture."""

__version__ = "0.1.0"
