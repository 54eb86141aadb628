"""Pure safety protocol: what is booked against a budget, and what may be granted."""
