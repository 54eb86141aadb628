import queue
import time

from agent_fixtures import DEADLINE_S, Listings

from wattline.agent.discovery import Discovery, Enumerated
from wattline.agent.owner_watch import OwnersSeen, OwnerWatch
from wattline.drivers.gpu.device import GpuError, GpuFault
from wattline.drivers.gpu.simulated import SimulatedDevice, SimulatedDriver
from wattline.drivers.pods import Ownership


def watch(listings: Listings, reconcile_s: float = 3600.0) -> OwnerWatch:
    return OwnerWatch(
        listings, listings, namespace=None, reconcile_s=reconcile_s, now=time.monotonic
    )


def test_a_look_joins_pods_with_what_they_hold() -> None:
    listings = Listings()
    listings.put("w", "480", "GPU-a")
    seen, settled = watch(listings).look()
    assert settled
    assert seen.joined is not None
    assert seen.joined.owners["GPU-a"] == {"uid-w"}
    assert seen.method == "pod_resources"


def test_a_listing_that_fails_is_never_an_empty_one() -> None:
    listings = Listings()
    listings.pods_fail = True
    seen, settled = watch(listings).look()
    assert (seen.pods, settled) == (None, False)
    assert seen.pods_error is not None
    listings.pods_fail, listings.owners_fail = False, True
    seen, settled = watch(listings).look()
    assert (seen.joined, settled) == (None, False)
    assert seen.owners_error is not None


class Buggy(Listings):
    def owners(self) -> Ownership:
        self.looks += 1
        raise KeyError("a bug")


def test_a_bug_in_a_source_freezes_and_the_watch_goes_on() -> None:
    listings = Buggy()
    seen: queue.SimpleQueue[OwnersSeen] = queue.SimpleQueue()
    watched = watch(listings)
    watched.start(seen.put)
    first = seen.get(timeout=DEADLINE_S)
    assert first.joined is None
    assert "KeyError" in (first.owners_error or "")
    watched.event()
    assert seen.get(timeout=DEADLINE_S).joined is None
    watched.stop()


def test_at_rest_it_looks_once_and_each_event_makes_it_look_again() -> None:
    listings = Listings()
    seen: queue.SimpleQueue[OwnersSeen] = queue.SimpleQueue()
    watched = watch(listings)
    watched.start(seen.put)
    seen.get(timeout=DEADLINE_S)
    listings.put("w", "480", "GPU-a")
    watched.event()
    while (joined := seen.get(timeout=DEADLINE_S).joined) is None or not joined.owners:
        pass
    assert joined.owners["GPU-a"] == {"uid-w"}
    watched.stop()


class Failing(SimulatedDriver):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    def enumerate(self) -> list[SimulatedDevice]:
        if self.error is not None:
            raise self.error
        return list(super().enumerate())


def test_a_search_that_fails_says_why_and_can_be_repeated() -> None:
    for error in (GpuError(GpuFault.UNAVAILABLE, "no driver"), ZeroDivisionError("a bug")):
        driver = Failing(error)
        found: queue.SimpleQueue[Enumerated] = queue.SimpleQueue()
        discovery = Discovery(driver, found.put)
        discovery.look()
        first = found.get(timeout=DEADLINE_S)
        assert first.error is not None
        assert str(error) in str(first.error)
        driver.error = None
        discovery.look()
        assert len(found.get(timeout=DEADLINE_S).devices) == 8
        assert discovery.close(DEADLINE_S)
