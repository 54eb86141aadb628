import re
from pathlib import Path

import pytest
from agent_fixtures import H100, assert_eventually, bench

from wattline.agent.commands import Pin
from wattline.agent.loop import lease_clock
from wattline.agent.metrics import exposition
from wattline.agent.snapshot import GpuView, Reason
from wattline.drivers.gpu.device import GpuFault


def test_a_grant_is_enforced_read_back_and_reported(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        assert node.view(0).reason is Reason.FOUND
        node.granted(400.0, 350.0)
        view = node.view(0)
        assert (view.reason, view.wanted_w, view.held_w) == (Reason.GRANTED, 400.0, 400.0)
        assert view.original_w == 700.0
        assert node.picture().not_ready == ()
        assert_eventually(
            lambda: node.picture().report == (node.state / "report.json").read_bytes(),
            "the same bytes in both",
        )


def test_before_the_first_grant_nothing_is_written(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.node.rival_write(node.uuids[0], 300.0)
        assert_eventually(lambda: node.view(0).enforced_w == 300.0, "the rival's limit is seen")
        assert node.gpu(0).writes == []
        assert node.view(0).wanted_w is None


def test_only_the_newest_grant_of_this_incarnation_is_obeyed(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.grant(600.0, 600.0, incarnation=node.picture().incarnation + 7)
        node.grant(650.0, 650.0, sequence=0)
        node.granted(390.0, 390.0)
        for gpu in node.node.gpus:
            assert gpu.writes == [400.0, 390.0]


def test_an_epoch_is_adopted_and_fences_older_ones(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.acted(node.adopt(5))
        node.grant(600.0, 600.0, epoch=1)
        node.granted(380.0, 380.0, epoch=5)
        assert node.picture().epoch == 5
        assert 600.0 not in node.gpu(0).writes


def test_an_unknown_gpu_is_named_and_the_others_obey(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        sequence = node.grant(400.0, 400.0, uuids=[node.uuids[0], "GPU-elsewhere"])
        assert_eventually(lambda: node.limits() == [400.0, 700.0], "the known GPU obeys")
        assert_eventually(lambda: node.view(0).sequence == sequence, "and says so")


@pytest.mark.parametrize("content", [b"", b'{"protocol": 1', b"\xff" * 100, b"[]"])
def test_torn_and_foreign_files_change_nothing_and_are_told(tmp_path: Path, content: bytes) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        (node.grants / "n1.json").write_bytes(content)
        key = "wattline_agent_grant_files_refused_total"
        before = node.picture().counters.get(key, 0)
        assert_eventually(
            lambda: node.picture().counters.get(key, 0) > before, "a refusal is counted"
        )
        assert node.limits() == [400.0, 400.0]
        node.granted(450.0, 450.0)


def test_a_lease_that_ends_takes_the_gpu_to_its_expiry_watts(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        before = node.picture().incarnation
        node.grant(500.0, 500.0, lease_s=0.5, expiry_w=300.0)
        assert_eventually(lambda: node.limits() == [300.0, 300.0], "expiry watts")
        assert_eventually(lambda: node.view(0).reason is Reason.EXPIRED, "told")
        assert node.picture().incarnation > before
        node.granted(450.0, 450.0)


def test_a_grant_out_of_range_is_never_written(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.grant(5000.0, 20.0)
        key = 'wattline_agent_grants_total{result="out_of_range"}'
        assert_eventually(lambda: node.picture().counters.get(key) == 2, "both refused")
        assert node.gpu(0).writes == node.gpu(1).writes == []


def test_a_rival_is_repaired_and_counted(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.node.rival_write(node.uuids[0], 650.0)
        assert_eventually(lambda: node.limits()[0] == 400.0, "repaired")
        assert_eventually(lambda: node.view(0).repairs == 1, "counted")
        node.node.rival_write(node.uuids[0], 600.0)
        assert_eventually(
            lambda: node.view(0).rival_w == 600.0, "booked as found while we back off"
        )
        assert node.report().gpus[0].facts.rival_w == 600.0
        assert node.report().gpus[0].facts.granted_w == 400.0
        assert node.report().gpus[0].facts.read_age_s is not None
        assert node.report().sources["grants"] is not None


def test_a_rival_is_only_reported_where_repair_is_off(tmp_path: Path) -> None:
    with bench(tmp_path, settings={"repair": False}) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.node.rival_write(node.uuids[0], 650.0)
        assert_eventually(lambda: node.view(0).rival_w == 650.0, "seen")
        assert node.gpu(0).writes == [400.0]


def test_an_out_of_band_limit_is_told_and_not_fought(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(500.0, 500.0)
        node.node.clamp(node.uuids[0], 350.0)
        assert_eventually(lambda: any("out of band" in note for note in node.view(0).notes), "told")
        assert node.gpu(0).writes == [500.0]
        assert node.view(0).enforced_w == 350.0
        node.node.clamp(node.uuids[0], None)
        assert_eventually(lambda: node.view(0).rival_w is None, "peace")


def test_a_driver_reload_is_repaired_on_all_gpus(tmp_path: Path) -> None:
    with bench(tmp_path, gpus=8) as node:
        node.start()
        node.known()
        node.granted(*[400.0] * 8)
        node.node.reload()
        assert_eventually(lambda: node.limits() == [400.0] * 8, "all back")


def test_new_indices_keep_limits_with_their_uuids(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 300.0)
        node.node.reenumerate([1, 0])
        assert_eventually(
            lambda: [view.index for view in node.picture().gpus] == [0, 1], "listed anew"
        )
        assert_eventually(lambda: node.view(0).index == 1, "indices are exchanged")
        node.granted(410.0, 310.0)


def test_a_lost_gpu_is_named_and_comes_back(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.node.fail(node.uuids[0], GpuFault.LOST)
        assert_eventually(lambda: node.view(0).fault, "named")
        assert_eventually(lambda: node.report().gpus[0].report is None, "nothing is claimed of it")
        node.grant(None, 350.0)
        assert_eventually(lambda: node.limits()[1] == 350.0, "the other goes on")
        node.node.rival_write(node.uuids[0], 700.0)
        node.node.fail(node.uuids[0], None)
        assert_eventually(lambda: node.limits()[0] == 400.0, "repaired when it answers again")


def test_a_gpu_that_is_added_is_found(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.node.add(H100)
        node.known()
        node.granted(400.0, 400.0, 400.0)
        assert [view.original_w for view in node.picture().gpus] == [700.0] * 3


def test_a_gpu_that_hangs_delays_no_other(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.node.delay(node.uuids[0], 3600.0, "enforced_w")
        node.node._wait = lambda seconds: assert_eventually(
            lambda: node.gpu(0).delays_s == {} or seconds == 0
        )
        assert_eventually(lambda: node.view(0).fault == "a call to it hangs", "seen")
        node.grant(300.0, 300.0)
        assert_eventually(lambda: node.limits()[1] == 300.0, "the other obeys")
        assert node.report().gpus[0].report is None
        with node.node.changing(node.uuids[0]) as gpu:
            gpu.delays_s.clear()
        assert_eventually(
            lambda: node.limits() == [300.0, 300.0], "the newest wins when it answers"
        )


def test_a_clock_ceiling_comes_and_goes_with_its_grants(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0, clock_mhz=1200)
        assert_eventually(lambda: node.gpu(0).clock_ceiling_mhz == 1200, "set")
        assert_eventually(lambda: node.view(0).clock_ceiling_mhz == 1200, "told")
        node.granted(420.0, 420.0)
        assert_eventually(lambda: node.gpu(0).clock_ceiling_mhz is None, "taken away")


def test_a_ceiling_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        for uuid in node.uuids:
            with node.node.changing(uuid) as gpu:
                gpu.clock_ceiling_mhz = 900
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.granted(410.0, 410.0)
        assert node.gpu(0).clock_ceiling_mhz == 900


def test_a_write_that_is_refused_is_told_and_tried_again(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.node.fail(node.uuids[0], GpuFault.NO_PERMISSION, "write_limit")
        node.grant(400.0, 400.0)
        assert_eventually(lambda: "no_permission" in (node.view(0).fault or ""), "told")
        assert node.view(0).rival_w is None
        assert_eventually(lambda: node.limits()[1] == 400.0, "the other obeys")
        node.node.fail(node.uuids[0], None, "write_limit")
        assert_eventually(lambda: node.limits()[0] == 400.0, "tried again")


def test_persistence_mode_is_in_the_report(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        for uuid in node.uuids:
            with node.node.changing(uuid) as gpu:
                gpu.persistence = False
        node.start()
        node.known()
        assert_eventually(lambda: node.report().gpus[0].report is not None, "a report")
        said = node.report().gpus[0].report
        assert said is not None
        assert said.persistence is False


def test_a_restore_needs_a_grant_that_books_it(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        node.grant(500.0, 500.0, restore=node.uuids)
        assert_eventually(lambda: node.limits() == [500.0, 500.0], "the grant")
        assert_eventually(lambda: any("above" in note for note in node.view(0).notes), "told")
        node.grant(700.0, 700.0, restore=node.uuids)
        assert_eventually(lambda: node.limits() == [700.0, 700.0], "given back")
        assert_eventually(lambda: node.view(0).wanted_w is None, "not ours any more")
        node.node.rival_write(node.uuids[0], 600.0)
        assert_eventually(lambda: node.view(0).enforced_w == 600.0, "seen")
        assert node.gpu(0).writes[-1] == 700.0
        node.granted(450.0, 450.0)
        assert node.view(0).original_w == 600.0


def test_what_was_asked_for_is_restored_where_a_lower_limit_was_enforced(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.node.clamp(node.uuids[0], 500.0)
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        assert node.view(0).original_w == 700.0


def test_refused_grants_are_said_with_reason_and_age_until_good_ones_come(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        assert_eventually(lambda: node.picture().not_ready == (), "ready")
        (node.grants / "n1.json").write_bytes(b'{"protocol": 1, "no')
        [why] = assert_eventually(lambda: node.picture().not_ready, "said")
        assert re.match(
            r"the newest grants are refused \(last good \d+ s ago\) for \d+ s: .*no whole", why
        )
        assert node.limits() == [400.0, 400.0]
        node.granted(390.0, 390.0)
        assert_eventually(lambda: node.picture().not_ready == (), "ready again")


def test_a_brake_file_that_cannot_be_looked_at_is_said(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.brake_file = tmp_path / "away" / "brake"
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        [why] = assert_eventually(lambda: node.picture().not_ready, "said")
        assert why.startswith("the brake file cannot be looked at: ")
        assert str(tmp_path / "away") in why
        (tmp_path / "away").mkdir(mode=0o755)
        assert_eventually(lambda: node.picture().not_ready == (), "ready again")


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(400.0, 400.0)
        path = node.state / "report.json"

        def in_its_place() -> bool:
            path.unlink(missing_ok=True)
            try:
                path.mkdir()
            except FileExistsError:  # a report was written between the two
                return False
            return True

        assert_eventually(in_its_place, "a folder in the report's place")
        assert_eventually(
            lambda: any("report cannot be written" in why for why in node.picture().not_ready),
            "said",
        )
        path.rmdir()
        assert_eventually(lambda: node.picture().not_ready == (), "ready again")


def test_a_gpu_that_has_gone_is_faulty_and_its_index_is_another_ones(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        agent = node.start()
        node.known()
        node.granted(400.0, 400.0)
        gone, kept = node.uuids
        node.node.gpus.pop(0)
        node.node.enumeration += 1
        agent.look_again()

        def views() -> dict[str, GpuView]:
            return {view.uuid: view for view in node.picture().gpus}

        assert_eventually(lambda: not views()[gone].present and views()[kept].index == 0, "gone")
        assert agent.submit(Pin(by="ada", why="hot", gpu="0", watts=300.0)).done
        assert_eventually(lambda: views()[kept].requested_w == 300.0, "the one that is there")
        assert not agent.submit(Pin(by="ada", why="hot", gpu=gone, watts=300.0)).done
        page = exposition(node.picture, lease_clock)().decode().splitlines()
        about = [line.partition("{")[0] for line in page if f'gpu="{gone}"' in line]
        assert about == ["wattline_agent_gpu_info", "wattline_agent_gpu_faulty"]
        applied = [line for line in page if line.startswith("dynamo_power_agent_applied_limit")]
        assert applied == ['dynamo_power_agent_applied_limit_watts{gpu="0"} 300.0']


def test_a_driver_of_whole_watts_is_granted_whole_watts(tmp_path: Path) -> None:
    with bench(tmp_path, settings={"driver": "dcgm"}) as node:
        agent = node.start()
        node.known()
        sequence = node.grant(400.7, 400.0, brake_w=250.9)
        node.acted(sequence)
        assert (node.limits(), node.view(0).held_w) == ([400.0, 400.0], 400.0)
        assert agent.submit(Pin(by="ada", why="hot", gpu="0", watts=300.5)).done
        assert_eventually(lambda: node.limits() == [300.0, 400.0], "pinned")
        agent.call_brake("signal", "SIGUSR1")
        assert_eventually(lambda: node.limits() == [250.0, 250.0], "braked")
        assert node.view(0).rival_w is None
