"""Vision encoders whose token mixer is two-dimensional line-scan propagation instead of attention."""

__version__ = "0.1.0"
