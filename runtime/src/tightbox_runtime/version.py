"""The version, which is that of tightbox."""

__version__ = "0.1.0"
