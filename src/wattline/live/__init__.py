"""The live system on one machine: real Dynamo processes around the plant's own engine."""
