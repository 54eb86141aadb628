"""Fixtures of the virtual NVML's tests."""

from virtual_fixtures import local_node, virtual_node

__all__ = ["local_node", "virtual_node"]
