"""What operators order: kept over restarts, audited, ended by itself where an end was given.

What an order does to a decision is in `wattline.recording.orders`; here is who may give one, and
which are in force.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wattline.controller.give_back import Originals
from wattline.controller.site import Site
from wattline.core.errors import InputError, WattlineError
from wattline.drivers.trusted_files import read_trusted, replace_file
from wattline.recording.orders import Order, OrderKind, given_back_w, until_text

log = logging.getLogger(__name__)

MOST_ORDERS = 100
_MOST_BYTES = 1 << 20
_LATEST_S = 1e11
_ORDERS = TypeAdapter(list[Order])


class Audit:
    """Appends one line per command to a file, and says it in the log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def note(self, at_s: float, what: str, by: str, why: str, **more: Any) -> None:
        """Keep a line. A disk that refuses is said, and does not stop the command."""
        given = {name: value for name, value in more.items() if value is not None}
        line = {"time_s": round(at_s, 3), "what": what, "by": by, "why": why, **given}
        log.info(what, extra={"audit": True, "by": by, "why": why, **given})
        try:
            with self._lock, self._path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            log.error("the audit line is in the log only", extra={"why": error.strerror})


class OrderBook:
    """Orders in force. Safe to call from any thread.

    starts: whether this controller can start and drain replicas. Raises InputError for a file that
    is damaged, WattlineError for one that cannot be read.
    """

    def __init__(self, path: Path, site: Site, audit: Audit, *, starts: bool = True) -> None:
        self._lock = threading.RLock()
        self._starts = starts
        self._path = path
        self._site = site
        self._audit = audit
        self._orders = self._read()
        numbers = [int(order.id) for order in self._orders if order.id.isdecimal()]
        self._next = max(numbers, default=0) + 1

    def in_force(self, now_s: float) -> tuple[Order, ...]:
        """The orders at `now_s`; those that have ended are forgotten and audited."""
        with self._lock:
            ended = [o for o in self._orders if o.until_s is not None and now_s >= o.until_s]
            if ended:
                self._orders = [order for order in self._orders if order not in ended]
                for order in ended:
                    self._audit.note(now_s, f"{order.kind} ended", "controller", "its time is up")
                try:
                    self._save(self._orders)
                except WattlineError as error:
                    log.warning("orders are not kept", extra={"why": str(error)})
            return tuple(self._orders)

    def hold(self, by: str, why: str, now_s: float, until_s: float | None) -> Order:
        """Nothing is raised, started, drained or sent to frontends."""
        order = Order(id="", kind=OrderKind.HOLD, by=by, why=why, since_s=now_s, until_s=until_s)
        return self._give(order, lambda other: other.kind is OrderKind.HOLD)

    def pin(
        self,
        pool: str,
        by: str,
        why: str,
        now_s: float,
        until_s: float | None,
        *,
        cap_w: float | None = None,
        replicas: int | None = None,
    ) -> Order:
        """A pool keeps `cap_w` per GPU, or so many replicas. Exactly one of the two."""
        self._check_pin(pool, cap_w, replicas)
        if replicas is not None and not self._starts:
            remedy = "actuation.replicas is `none`: nothing here starts or drains one"
            raise InputError("replicas", replicas, remedy)
        order = Order(
            id="",
            kind=OrderKind.PIN,
            by=by,
            why=why,
            since_s=now_s,
            until_s=until_s,
            pool=pool,
            cap_w=cap_w,
            replicas=replicas,
        )
        return self._give(
            order,
            lambda other: other.pool == pool and (other.cap_w is None) == (cap_w is None),
        )

    def cordon(self, node: str, by: str, why: str, now_s: float, until_s: float | None) -> Order:
        """No new replica and no raise on a node; its replicas drain."""
        if node not in self._site.nodes:
            raise InputError("node", node, f"use one of {', '.join(self._site.nodes)}")
        order = Order(
            id="",
            kind=OrderKind.CORDON,
            by=by,
            why=why,
            since_s=now_s,
            until_s=until_s,
            node=node,
            gpus=self._site.gpus_of(node),
        )
        return self._give(
            order, lambda other: other.kind is OrderKind.CORDON and other.node == node
        )

    def restore(
        self,
        found: Originals,
        by: str,
        why: str,
        now_s: float,
        until_s: float | None,
        usable_w: float,
    ) -> Order:
        """Give GPUs their original limits back; InputError where they do not fit `usable_w`."""
        order = Order(
            id="",
            kind=OrderKind.RESTORE,
            by=by,
            why=why,
            since_s=now_s,
            until_s=until_s,
            node=found.node,
            gpus=found.gpus,
            originals_w=found.watts,
        )

        def replaces(other: Order) -> bool:
            return other.kind is OrderKind.RESTORE and set(other.gpus) <= set(order.gpus)

        site = self._site
        others = [other for other in self.in_force(now_s) if not replaces(other)]
        if not given_back_w([*others, order], site.fleet, site.uuid, site.pool, usable_w):
            raise InputError(
                "restore",
                f"{sum(found.watts):g} W",
                f"with all other GPUs at their lowest limits this does not fit {usable_w:,.0f} W",
            )
        return self._give(order, replaces)

    def resume(self, what: str, by: str, why: str, now_s: float) -> int:
        """Take orders back: `all`, or those with an id, or of a pool, a node or a restored GPU.

        InputError if there is none.
        """
        with self._lock:
            ended = [
                o
                for o in self._orders
                if what in ("all", o.id, o.pool, o.node)
                or (o.kind is OrderKind.RESTORE and o.gpus == (what,))
            ]
            if not ended and what != "all":
                known = ", ".join(f"{o.id} ({o.kind})" for o in self._orders) or "none in force"
                raise InputError("resume", what, f"give all, an id, a pool or a node: {known}")
            left = [order for order in self._orders if order not in ended]
            self._save(left)
            self._orders = left
        self._audit.note(now_s, "resume", by, why, orders=[order.id for order in ended])
        return len(ended)

    def _check_pin(self, pool: str, cap_w: float | None, replicas: int | None) -> None:
        fleet = self._site.fleet
        found = next((entry for entry in fleet.pools if entry.name == pool), None)
        if found is None:
            known = ", ".join(entry.name for entry in fleet.pools)
            raise InputError("pool", pool, f"use one of {known}")
        if (cap_w is None) == (replicas is None):
            raise InputError("pin", pool, "give exactly one of cap_w, replicas")
        product = fleet.product_of(found)
        if cap_w is not None and not product.min_limit_w <= cap_w <= product.max_limit_w:
            remedy = f"{product.name} takes {product.min_limit_w:g} to {product.max_limit_w:g} W"
            raise InputError("cap_w", cap_w, remedy)
        most = found.gpus // found.gpus_per_replica
        if replicas is not None and not 0 <= replicas <= most:
            raise InputError("replicas", replicas, f"the pool holds 0 to {most}")

    def _give(self, order: Order, replaces: Callable[[Order], bool]) -> Order:
        """Put an order in force in place of those that it replaces; it is on disk first."""
        if not order.by or not order.why:
            raise InputError(order.kind, "no name or reason", "say who orders it, and why")
        if order.until_s is not None and order.until_s <= order.since_s:
            raise InputError(order.kind, order.until_s, "it would have ended already")
        with self._lock:
            order = replace(order, id=str(self._next))
            orders = [other for other in self._orders if not replaces(other)] + [order]
            if len(orders) > MOST_ORDERS:
                raise InputError(order.kind, len(orders), f"at most {MOST_ORDERS} orders")
            self._save(orders)
            self._orders = orders
            self._next += 1
        self._audit.note(
            order.since_s,
            order.kind.value,
            order.by,
            order.why,
            order=order.id,
            until=until_text(order.until_s),
            pool=order.pool,
            cap_w=order.cap_w,
            replicas=order.replicas,
            node=order.node,
            gpus=order.gpus if order.kind is OrderKind.RESTORE else None,
        )
        return order

    # On disk

    def _read(self) -> list[Order]:
        try:
            content = read_trusted(self._path, max_bytes=_MOST_BYTES)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise WattlineError(f"{self._path}: {error.strerror or error}") from None
        try:
            orders = _ORDERS.validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise InputError(
                str(self._path), first["msg"], "no list of orders: set the file aside"
            ) from None
        for order in orders:
            found = self._wrong_in(order)
            if found is not None:
                raise InputError(str(self._path), found, "no order of ours: set the file aside")
        return orders

    def _wrong_in(self, order: Order) -> str | None:
        """What no order that was given by command can hold; None: nothing."""
        texts = (order.id, order.by, order.why, order.pool, order.node, *order.gpus)
        if not all(text is None or (text.isprintable() and len(text) <= 200) for text in texts):
            return f"order {order.id!r:.40} with a text that is none"
        times = [order.since_s] + ([] if order.until_s is None else [order.until_s])
        if not all(0.0 <= time_s <= _LATEST_S for time_s in times):
            return f"order {order.id} with a time that is none"
        if order.kind is OrderKind.RESTORE and len(order.gpus) != len(order.originals_w):
            return f"order {order.id} without one limit per GPU"
        if order.kind is OrderKind.PIN and order.pool in {p.name for p in self._site.fleet.pools}:
            try:
                self._check_pin(order.pool, order.cap_w, order.replicas)
            except InputError as error:
                return f"order {order.id}: {error}"
        return None

    def _save(self, orders: list[Order]) -> None:
        content = json.dumps([asdict(order) for order in orders]).encode() + b"\n"
        try:
            replace_file(self._path, content)
        except OSError as error:
            raise WattlineError(
                f"{self._path}: {error.strerror or error}: the order is not in force"
            ) from None
