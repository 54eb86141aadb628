"""Runs inside Dynamo's environment: what the release's own messages make of ours.

Reads one JSON document on standard input: requests of random fields for us to read, answers and
registrations of ours to read there. Writes what it made of them, and the release's schema.
"""

import json
import sys
from importlib import import_module
from typing import Any


def schema(release: Any) -> dict[str, Any]:
    """Fields by message and number, methods by service, values by enum."""
    described = release.DESCRIPTOR
    return {
        "package": described.package,
        "messages": {
            name: {field.name: field.number for field in message.fields}
            for name, message in described.message_types_by_name.items()
        },
        "services": {
            name: {
                method.name: [method.input_type.name, method.output_type.name]
                for method in service.methods
            }
            for name, service in described.services_by_name.items()
        },
        "enums": {
            name: {value.name: value.number for value in kind.values}
            for name, kind in described.enum_types_by_name.items()
        },
    }


def main() -> None:
    """One exchange."""
    release = import_module("dynamo.planner.plugins.proto.v1.plugin_pb2")
    form = import_module("google.protobuf.json_format")
    asked = json.load(sys.stdin)
    said = {
        "schema": schema(release),
        "requests": [
            form.ParseDict(request, release.ConstrainStageRequest()).SerializeToString().hex()
            for request in asked["requests"]
        ],
        "answers": [
            form.MessageToDict(release.ConstrainStageResponse.FromString(bytes.fromhex(answer)))
            for answer in asked["answers"]
        ],
    }
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
