"""Which limits can be given back: what the nodes' agents found before they wrote anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wattline.controller.nodes import NodeWatch
from wattline.controller.site import Site
from wattline.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Originals:
    """GPUs and their original limits, in the same order. node: when it is a whole node."""

    node: str | None
    gpus: tuple[str, ...]
    watts: tuple[float, ...]


def originals_of(what: str, site: Site, watches: Sequence[NodeWatch]) -> Originals:
    """Originals of a node, or of the GPU with this UUID; InputError where one is not known."""
    node = what if what in site.nodes else None
    gpus = (what,) if node is None else site.gpus_of(node)
    watts = []
    for uuid in gpus:
        if uuid not in site.uuid:
            known = ", ".join(site.nodes)
            raise InputError("restore", what, f"give a GPU's UUID or a node: {known}")
        watch = watches[site.node[site.uuid.index(uuid)]]
        entry = watch.gpu(uuid)
        if entry is None or entry.facts.original_w is None:
            remedy = f"node {watch.name} tells no original limit of GPU {uuid}: nothing to give"
            raise InputError("restore", what, remedy)
        watts.append(entry.facts.original_w)
    return Originals(node, gpus, tuple(watts))
