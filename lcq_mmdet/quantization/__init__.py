"""Quantizers, and the layers that hold them."""
