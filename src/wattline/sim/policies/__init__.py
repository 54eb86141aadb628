"""Policies to compare: one module each, all behind `Policy`."""
