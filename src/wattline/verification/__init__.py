"""Exploration of the grant protocol: every interleaving of small fleets, and broken variants."""
