"""Wattline as a plugin of NVIDIA Dynamo's planner (plugin protocol v1, as of release 1.6.1).

`messages` and `wire` speak the protocol without generated code, `constrain` holds the rule,
`state_file` what the controller says, `service` answers calls, `server` and `registration` are the
two ends of gRPC. `plugin.proto` describes the protocol for readers and tests.
"""
