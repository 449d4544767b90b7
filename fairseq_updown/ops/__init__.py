"""Operators in a fast form beside the plain one, which gives the same."""

from .accelerate import accelerate

__all__ = ["accelerate"]
