"""One module per outside system, each with its fake beside it."""
