"""Runs inside Dynamo's environment: takes the planner's decisions, says them, and acknowledges.

What a real deployment would do with a decision is left out: the workers stay as they are.
"""

import asyncio
import json
import sys
from importlib import import_module
from typing import Any


async def follow(runtime: Any) -> None:
    """Until the process is ended."""
    client = import_module("dynamo._core").VirtualConnectorClient(runtime, sys.argv[1])
    while True:
        await client.wait()
        decision = await client.get()
        said = {
            "id": decision.decision_id,
            "prefill": decision.num_prefill_workers,
            "decode": decision.num_decode_workers,
        }
        print("decision " + json.dumps(said), flush=True)
        await client.complete(decision)


if __name__ == "__main__":
    asyncio.run(import_module("dynamo.runtime").dynamo_worker()(follow)())
