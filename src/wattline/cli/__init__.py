"""Command line: parses, calls, prints. No logic."""
