"""NVIDIA Dynamo 1.6: metrics pages, admission thresholds, the planner's plugin protocol."""
