"""Operators' commands as they come over HTTP: JSON bodies, checked, then carried out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from wattline.catalog.yaml_files import StrictModel
from wattline.controller.budget import BudgetDesk, Override
from wattline.controller.give_back import Originals
from wattline.controller.operator import Audit, OrderBook
from wattline.core.errors import InputError
from wattline.recording.orders import until_text

Words = Annotated[str, StringConstraints(pattern=r"^[ [^\p{C}\p{Z}]]{1,200}$")]
"""Printable, on one line: they come again in logs, reasons and metrics."""
M = TypeVar("M", bound="Command")


class Command(StrictModel):
    """What every command says."""

    by: Words
    """Who orders it."""
    why: Words
    """For what reason."""


class Timed(Command):
    """A command that can end by itself."""

    for_s: float | None = Field(default=None, gt=0.0, le=366 * 86_400.0)
    """Seconds until it ends; left out: until it is taken back."""


class BudgetCommand(Timed):
    """`/budget`: another budget, or (`clear`) back to configuration and schedule."""

    total_w: float | None = Field(default=None, gt=0.0, le=1e9)
    """Budget, watts. Exactly one of this and `clear`."""
    clear: bool = False
    """End what was set before."""


class HoldCommand(Timed):
    """`/hold`: nothing is raised, started, drained or sent to frontends."""


class PinCommand(Timed):
    """`/pin`: a pool keeps its cap or its replicas. Exactly one of the two."""

    pool: Words
    """Pool."""
    cap_w: float | None = Field(default=None, gt=0.0, le=1e5)
    """Limit of each of its serving GPUs, watts."""
    replicas: int | None = Field(default=None, ge=0, le=1_000_000)
    """Replicas."""


class CordonCommand(Timed):
    """`/cordon`: no new replica and no raise on a node; its replicas drain."""

    node: Words
    """Node."""


class RestoreCommand(Timed):
    """`/restore`: GPUs get their original limits back, and their nodes let go of them."""

    what: Words
    """A node, or the UUID of a GPU."""


class ResumeCommand(Command):
    """`/resume`: orders are taken back."""

    what: Words = "all"
    """`all`, an order's id, a pool, a node or a restored GPU."""


class AttestOffCommand(Command):
    """`/attest-off`: a node that no longer reports is powered off; its watts come free.

    Only somebody who has seen that it is off may say so: nothing else stands behind it.
    """

    node: Words
    """Node."""


class ModelsCommand(Command):
    """`/models`: sweeps of predicted engines; it holds until the controller starts again."""

    action: Literal["enable", "disable", "retry"]
    """`enable` after they were disabled, `disable`, or `retry`: ask anew now."""
    deployment: Words | None = None
    """Of one deployment; left out: of all that are predicted."""


class Desk:
    """Carries commands out.

    attest_off: takes node, who and why. originals: what a node or GPU would be given back, and the
    watts that may be booked. models: takes action, deployment, who and why. changed: called after
    each command, so that the next tick comes at once.
    """

    def __init__(
        self,
        orders: OrderBook,
        budget: BudgetDesk,
        audit: Audit,
        now: Callable[[], float],
        attest_off: Callable[[str, str, str], None],
        originals: Callable[[str], tuple[Originals, float]],
        models: Callable[[str, str | None, str, str], str],
        changed: Callable[[], None],
    ) -> None:
        self._orders = orders
        self._budget = budget
        self._audit = audit
        self._now = now
        self._attest_off = attest_off
        self._originals = originals
        self._models = models
        self._changed = changed

    def __call__(self, name: str, body: bytes) -> str:
        """Carry a command out; a line on what was done. InputError for what cannot be."""
        handlers = {
            "budget": self._set_budget,
            "hold": self._hold,
            "pin": self._pin,
            "cordon": self._cordon,
            "restore": self._restore,
            "resume": self._resume,
            "attest-off": self._attest,
            "models": self._set_models,
        }
        if name not in handlers:
            raise InputError("command", name, f"use one of {', '.join(handlers)}")
        line = handlers[name](body)
        self._changed()
        return line

    def _set_budget(self, body: bytes) -> str:
        command = _parsed(BudgetCommand, body)
        now_s, until_s = self._times(command)
        if (command.total_w is None) != command.clear:
            raise InputError("budget", command.total_w, "give exactly one of total_w, clear")
        if command.total_w is None:
            had = self._budget.clear()
            self._audit.note(now_s, "budget cleared", command.by, command.why)
            return "back to configuration and schedule" if had else "nothing had been set"
        self._budget.set(
            Override(
                total_w=command.total_w,
                by=command.by,
                why=command.why,
                since_s=now_s,
                until_s=until_s,
            )
        )
        self._audit.note(
            now_s,
            "budget set",
            command.by,
            command.why,
            total_w=command.total_w,
            until=until_text(until_s),
        )
        return f"budget {command.total_w:g} W {until_text(until_s)}"

    def _hold(self, body: bytes) -> str:
        command = _parsed(HoldCommand, body)
        now_s, until_s = self._times(command)
        order = self._orders.hold(command.by, command.why, now_s, until_s)
        return f"order {order.id}: everything is held {until_text(until_s)}"

    def _pin(self, body: bytes) -> str:
        command = _parsed(PinCommand, body)
        now_s, until_s = self._times(command)
        order = self._orders.pin(
            command.pool,
            command.by,
            command.why,
            now_s,
            until_s,
            cap_w=command.cap_w,
            replicas=command.replicas,
        )
        what = f"{command.replicas} replicas" if command.cap_w is None else f"{command.cap_w:g} W"
        return f"order {order.id}: {command.pool} is pinned to {what} {until_text(until_s)}"

    def _cordon(self, body: bytes) -> str:
        command = _parsed(CordonCommand, body)
        now_s, until_s = self._times(command)
        order = self._orders.cordon(command.node, command.by, command.why, now_s, until_s)
        return f"order {order.id}: {command.node} is cordoned {until_text(until_s)}"

    def _restore(self, body: bytes) -> str:
        command = _parsed(RestoreCommand, body)
        now_s, until_s = self._times(command)
        found, usable_w = self._originals(command.what)
        order = self._orders.restore(found, command.by, command.why, now_s, until_s, usable_w)
        watts = f"{len(found.gpus)} original limits, {sum(found.watts):g} W together"
        return f"order {order.id}: {watts}, are given back {until_text(until_s)}"

    def _resume(self, body: bytes) -> str:
        command = _parsed(ResumeCommand, body)
        count = self._orders.resume(command.what, command.by, command.why, self._now())
        return f"{count} orders are taken back"

    def _attest(self, body: bytes) -> str:
        command = _parsed(AttestOffCommand, body)
        self._attest_off(command.node, command.by, command.why)
        self._audit.note(self._now(), "attested off", command.by, command.why, node=command.node)
        return f"{command.node} is taken to be powered off until it reports"

    def _set_models(self, body: bytes) -> str:
        command = _parsed(ModelsCommand, body)
        line = self._models(command.action, command.deployment, command.by, command.why)
        self._audit.note(
            self._now(),
            f"models {command.action}",
            command.by,
            command.why,
            deployment=command.deployment,
        )
        return line

    def _times(self, command: Timed) -> tuple[float, float | None]:
        now_s = round(self._now(), 3)
        return now_s, None if command.for_s is None else round(now_s + command.for_s, 3)


def _parsed(model: type[M], body: bytes) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise InputError(where, first.get("input"), first["msg"]) from None
