"""Wattline: power-aware serving of large language models inside a hard watt budget."""

__version__ = "0.1.0"
