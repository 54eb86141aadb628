import json
import threading
from pathlib import Path

import pytest
from agent_fixtures import DEADLINE_S, assert_eventually, bench

from wattline.agent.snapshot import Reason


def test_shutdown_and_restart_hold_what_was_granted(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 350.0)
        first = node.picture().incarnation
        node.stop()
        assert node.limits() == [400.0, 350.0]
        node.start()
        node.known()
        assert node.picture().incarnation != first
        assert [node.view(0).held_w, node.view(1).held_w] == [400.0, 350.0]
        assert node.view(0).original_w == 700.0
        assert node.gpu(0).writes == [400.0]


def test_a_restart_goes_down_to_what_the_journal_holds(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 350.0)
        node.stop()
        node.node.reload()
        assert node.limits() == [700.0, 700.0]
        node.start()
        assert_eventually(lambda: node.limits() == [400.0, 350.0], "held again")


def test_a_restart_never_goes_up(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 350.0)
        node.stop()
        node.node.rival_write(node.uuids[0], 300.0)
        node.start()
        node.known()
        assert node.view(0).held_w == 300.0
        assert node.limits() == [300.0, 350.0]


def test_grants_from_before_a_restart_are_dead(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        old = node.picture().incarnation
        node.granted(400.0, 400.0)
        node.stop()
        node.start()
        node.known()
        node.grant(650.0, 650.0, incarnation=old)
        node.granted(380.0, 380.0)
        assert 650.0 not in node.gpu(0).writes


def test_a_damaged_journal_is_set_aside_told_and_survived(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.stop()
        journal = node.state / "journal.json"
        content = bytearray(journal.read_bytes())
        content[-20] ^= 1
        journal.write_bytes(content)
        node.start()
        node.known()
        assert "damaged" in node.picture().journal
        assert (node.state / "journal.json.corrupt-1").read_bytes() == content
        assert node.limits() == [400.0, 400.0]
        assert node.view(0).held_w == 400.0
        audit = [json.loads(line) for line in (node.state / "audit.jsonl").read_text().splitlines()]
        assert audit[0]["what"] == "journal_set_aside"
        node.granted(420.0, 420.0)


def test_a_full_disk_stops_raises_and_lets_lowerings_through(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.disk.full = True
        node.grant(300.0, 600.0)
        assert_eventually(lambda: node.limits()[0] == 300.0, "the lowering")
        assert_eventually(lambda: "no raises" in node.picture().journal, "told")
        assert node.limits()[1] == 400.0
        node.disk.full = False
        assert_eventually(
            lambda: node.limits() == [300.0, 600.0], "the raise, once it can be journalled"
        )
        assert_eventually(lambda: node.picture().journal == "ok", "told")


def test_a_full_disk_at_the_start_lowers_and_journals_the_original_later(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.disk.full = True
        node.start()
        node.known()
        node.grant(400.0, 400.0)
        assert_eventually(lambda: node.limits() == [400.0, 400.0], "lowered for safety")
        node.disk.full = False
        assert_eventually(lambda: node.picture().journal == "ok", "journalled")
        node.stop()
        node.start()
        node.known()
        assert node.view(0).original_w == 700.0


def test_a_crash_on_a_full_disk_does_not_lose_the_original(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        assert_eventually(
            lambda: (node.state / "journal.json").exists(), "originals are journalled"
        )
        node.disk.full = True
        node.granted(400.0, 350.0)
        node.crash()
        node.start()
        node.known()
        assert [node.view(0).original_w, node.view(1).original_w] == [700.0, 700.0]
        node.disk.full = False
        node.granted(700.0, 700.0)
        node.grant(700.0, 700.0, restore=node.uuids)
        assert_eventually(lambda: node.view(0).wanted_w is None, "given back")


def test_a_crash_after_the_brake_does_not_lose_the_original(tmp_path: Path) -> None:
    with bench(tmp_path, settings={"brake_w": 300.0}) as node:
        agent = node.start()
        node.known()
        assert_eventually(
            lambda: (node.state / "journal.json").exists(), "originals are journalled"
        )
        node.disk.full = True
        agent.call_brake("signal", "SIGUSR1")
        assert_eventually(lambda: node.limits() == [300.0, 300.0], "braked")
        node.crash()
        node.disk.full = False
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        assert [node.view(0).original_w, node.view(1).original_w] == [700.0, 700.0]


def test_a_node_has_one_writer(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        first = node.start()
        node.known()
        second = node.start
        thread, node._thread = node._thread, None
        second()
        assert node.error is not None
        assert "another agent" in str(node.error)
        node.agent, node._thread = first, thread
        node.granted(400.0, 400.0)


@pytest.mark.parametrize("crash_before_write", [True, False])
def test_a_crash_between_journal_and_write_leaves_the_original_known(
    tmp_path: Path, crash_before_write: bool
) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.stop()
        if crash_before_write:
            for uuid in node.uuids:
                node.node.rival_write(uuid, 700.0)
        node.start()
        node.known()
        assert_eventually(lambda: node.limits() == [400.0, 400.0], "held")
        node.grant(700.0, 700.0, restore=node.uuids)
        assert_eventually(lambda: node.view(0).wanted_w is None, "given back")
        assert node.limits() == [700.0, 700.0]


def test_a_ceiling_of_ours_outlives_a_restart_and_is_taken_away_by_a_grant(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0, clock_mhz=1200)
        assert_eventually(lambda: node.gpu(0).clock_ceiling_mhz == 1200, "set")
        node.stop()
        node.start()
        node.known()
        assert node.gpu(0).clock_ceiling_mhz == 1200
        node.granted(410.0, 410.0)
        assert_eventually(lambda: node.gpu(0).clock_ceiling_mhz is None, "taken away")


def test_reason_of_a_held_limit_is_found(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.stop()
        node.start()
        node.known()
        assert node.view(0).reason is Reason.FOUND
        assert node.view(0).wanted_w == 400.0


def test_a_state_directory_that_is_open_to_all_is_closed(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.state.mkdir()
        node.state.chmod(0o777)
        (node.state / ".journal.json.99.tmp").write_bytes(b"left by a process that was killed")
        node.start()
        node.known()
        assert node.state.stat().st_mode & 0o777 == 0o755
        assert not (node.state / ".journal.json.99.tmp").exists()
        node.granted(400.0, 400.0)
        node.stop()
        node.start()
        node.known()
        assert node.view(0).original_w == 700.0


def test_while_a_call_hangs_the_lock_is_kept_and_no_successor_starts(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        entered, answers = threading.Event(), threading.Event()

        def hang(seconds: float) -> None:
            entered.set()
            assert answers.wait(DEADLINE_S)

        node.node._wait = hang
        node.node.delay(node.uuids[0], 1.0, "write_limit")
        node.grant(600.0, 600.0)
        assert entered.wait(DEADLINE_S)
        node.stop()
        assert node.driver.closed == 0
        node.start()
        assert "another agent" in str(node.error)
        answers.set()
        assert_eventually(lambda: node.limits()[0] == 600.0, "the hung write ends at last")
