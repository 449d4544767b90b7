"""Operators in a fast form; each has a plain form that gives the same."""
