"""Pure core: the fleet, its models and the decision. No I/O, no clock, no randomness."""
