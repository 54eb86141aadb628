import json
from pathlib import Path
from typing import Any

from agent_fixtures import Bench, assert_eventually, bench

from wattline.agent.commands import Brake, Hold, Pin, Restore, Resume
from wattline.agent.snapshot import Mode, Reason
from wattline.drivers.gpu.device import GpuFault

ANNOTATED: dict[str, Any] = {"mode": Mode.ANNOTATIONS, "grants": None, "safe_default_w": 500.0}


def audit(node: Bench) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (node.state / "audit.jsonl").read_text().splitlines()]


def test_the_file_brakes_until_it_is_gone_and_new_grants_climb_back(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        node.start()
        node.known()
        node.granted(500.0, 500.0)
        before = node.picture().incarnation
        node.brake_file.write_text('{"budget_version": 18}')
        assert_eventually(lambda: node.limits() == [250.0, 250.0], "braked")
        assert_eventually(
            lambda: node.picture().braked and node.view(0).reason is Reason.BRAKED, "told"
        )
        assert node.picture().incarnation > before
        assert node.report().budget_version == 18
        assert node.report().braked
        sequence = node.grant(500.0, 500.0)
        assert_eventually(lambda: node.view(0).sequence == sequence, "heard")
        assert node.limits() == [250.0, 250.0]
        node.brake_file.unlink()
        assert_eventually(
            lambda: any(line["what"] == "brake_file_gone" for line in audit(node)), "gone"
        )
        node.granted(480.0, 480.0)
        assert node.view(0).reason is Reason.GRANTED


def test_grants_from_before_a_brake_are_dead(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        agent = node.start()
        node.known()
        node.granted(500.0, 500.0)
        before = node.picture().incarnation
        agent.call_brake("signal", "SIGUSR1")
        assert_eventually(lambda: node.limits() == [250.0, 250.0], "braked")
        node.grant(600.0, 600.0, incarnation=before)
        node.granted(450.0, 450.0, incarnation=before + 1)
        assert 600.0 not in node.gpu(0).writes


def test_a_brake_reaches_gpus_that_were_never_granted(tmp_path: Path) -> None:
    with bench(tmp_path, settings={"brake_w": 300.0}) as node:
        agent = node.start()
        node.known()
        assert_eventually(lambda: agent.submit(Brake(by="ada")).done)
        assert_eventually(lambda: node.limits() == [300.0, 300.0], "braked")
        assert_eventually(lambda: node.view(0).original_w == 700.0, "its original is kept")


def test_a_brake_never_raises(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        agent = node.start()
        node.known()
        node.granted(220.0, 400.0)
        agent.call_brake("signal", "SIGUSR1")
        assert_eventually(lambda: node.limits()[1] == 250.0, "braked")
        assert_eventually(lambda: node.picture().braked, "told")
        assert max(node.gpu(0).writes) == 220.0


def test_a_brake_does_not_wait_for_a_disk_or_a_hung_gpu(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        agent = node.start()
        node.known()
        node.granted(500.0, 500.0)
        node.disk.full = True
        node.node._wait = lambda seconds: assert_eventually(lambda: not node.gpu(0).delays_s)
        node.node.delay(node.uuids[0], 3600.0)
        agent.call_brake("signal", "SIGUSR1")
        assert_eventually(lambda: node.limits()[1] == 250.0, "the other GPU is braked")
        with node.node.changing(node.uuids[0]) as gpu:
            gpu.delays_s.clear()
        assert_eventually(
            lambda: node.limits() == [250.0, 250.0], "and the hung one when it can be"
        )


def test_a_brake_does_not_wait_for_a_disk_that_hangs(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        agent = node.start()
        node.known()
        node.granted(500.0, 500.0)
        node.disk.answers.clear()
        node.grant(600.0, 600.0)
        agent.call_brake("signal", "SIGUSR1")
        assert_eventually(lambda: node.limits() == [250.0, 250.0], "braked while the journal hangs")
        node.disk.answers.set()
        assert_eventually(lambda: node.picture().braked, "told afterwards")
        assert node.limits() == [250.0, 250.0]
        assert 600.0 not in node.gpu(0).writes


def test_a_brake_in_annotation_mode_stays_until_it_is_resumed(tmp_path: Path) -> None:
    with bench(tmp_path, settings=ANNOTATED) as node:
        node.listings.put("w1", "480", node.uuids[0])
        agent = node.start()
        assert_eventually(lambda: node.limits()[0] == 480.0, "capped")
        assert agent.submit(Brake(by="ada")).done
        assert_eventually(lambda: node.limits() == [200.0, 200.0], "braked")
        node.listings.put("w2", "400", node.uuids[1])
        agent.pods_changed()
        assert_eventually(lambda: node.view(1).owners, "the new pod is seen")
        assert node.limits() == [200.0, 200.0]
        node.stop()
        assert node.limits() == [200.0, 200.0]
        agent = node.start()
        node.known()
        assert node.picture().braked
        assert node.limits() == [200.0, 200.0]
        assert agent.submit(Resume(by="ada")).done
        assert_eventually(lambda: node.limits() == [480.0, 400.0], "climbs back")


def test_what_only_the_brake_took_is_given_back_after_it(tmp_path: Path) -> None:
    with bench(tmp_path, settings=ANNOTATED) as node:
        agent = node.start()
        node.known()
        assert agent.submit(Brake(by="ada")).done
        assert_eventually(lambda: node.limits() == [200.0, 200.0], "braked")
        assert agent.submit(Resume(by="ada")).done
        assert_eventually(lambda: node.limits() == [700.0, 700.0], "given back")
        assert_eventually(lambda: node.view(0).wanted_w is None, "not ours")


def test_a_hold_obeys_lowerings_and_survives_a_restart(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        agent = node.start()
        node.known()
        node.granted(400.0, 400.0)
        assert agent.submit(Hold(by="ada", why="maintenance")).done
        assert_eventually(lambda: node.picture().operator_hold == "ada: maintenance", "shown")
        sequence = node.grant(500.0, 300.0)
        assert_eventually(lambda: node.limits() == [400.0, 300.0], "only the lowering")
        assert_eventually(lambda: node.view(0).sequence == sequence, "both were heard")
        node.stop()
        agent = node.start()
        node.known()
        assert node.picture().operator_hold == "ada: maintenance"
        assert agent.submit(Resume(by="bob")).done
        node.granted(500.0, 500.0)
        done = [(line["what"], line["by"], line["done"]) for line in audit(node)]
        assert done == [("hold", "ada", True), ("resume", "bob", True)]


def test_a_pin_stays_below_what_is_held_and_survives_a_restart(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        agent = node.start()
        node.known()
        node.granted(400.0, 400.0)
        refusal = agent.submit(Pin(by="ada", why="test", gpu=node.uuids[0], watts=450.0))
        assert not refusal.done
        assert "400 W" in refusal.text
        assert agent.submit(Pin(by="ada", why="test", gpu="0", watts=300.0)).done
        assert_eventually(lambda: node.limits() == [300.0, 400.0], "pinned")
        assert_eventually(lambda: node.view(0).reason is Reason.PINNED, "shown")
        assert node.report().gpus[0].facts.pinned_w == 300.0
        node.grant(500.0, 500.0)
        assert_eventually(lambda: node.limits() == [300.0, 500.0], "the pin stands against a raise")
        node.stop()
        agent = node.start()
        node.known()
        assert node.view(0).pinned_w == 300.0
        assert agent.submit(Resume(by="ada", gpu="0")).done
        node.granted(500.0, 500.0)


def test_commands_on_gpus_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        agent = node.start()
        node.known()
        for gpu in ("7", "GPU-elsewhere", ""):
            answer = agent.submit(Pin(by="ada", why="", gpu=gpu, watts=300.0))
            assert not answer.done
            assert "\n" not in answer.text


def test_a_restore_by_hand_goes_no_higher_than_what_is_held(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        agent = node.start()
        node.known()
        node.granted(400.0, 400.0)
        answer = agent.submit(Restore(by="ada"))
        assert not answer.done
        assert "above" in answer.text
        assert node.limits() == [400.0, 400.0]
        assert agent.submit(Pin(by="ada", why="test", gpu="0", watts=300.0)).done
        assert not agent.submit(Restore(by="ada", gpu="0")).done
        assert node.view(0).pinned_w == 300.0  # what is refused changes nothing
        assert agent.submit(Resume(by="ada", gpu="0")).done
        node.granted(700.0, 400.0)
        assert agent.submit(Restore(by="ada", gpu="0")).done
        assert_eventually(lambda: node.view(0).wanted_w is None, "not ours any more")


def test_a_restore_by_hand_lasts_until_it_is_resumed(tmp_path: Path) -> None:
    with bench(tmp_path, settings=ANNOTATED) as node:
        node.listings.put("w1", "480", node.uuids[0])
        agent = node.start()
        assert_eventually(lambda: node.limits()[0] == 480.0, "capped")
        assert agent.submit(Restore(by="ada")).done
        assert_eventually(lambda: node.limits()[0] == 700.0, "given back")
        node.stop()
        agent = node.start()
        node.known()
        assert_eventually(lambda: node.view(0).owners, "the pod is seen")
        assert node.limits()[0] == 700.0
        assert agent.submit(Resume(by="ada")).done
        assert_eventually(lambda: node.limits()[0] == 480.0, "capped again")


def test_an_answer_says_when_a_restart_would_forget_the_order(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        agent = node.start()
        node.known()
        node.disk.full = True
        answer = agent.submit(Hold(by="ada", why="x"))
        assert answer.done
        assert "a restart would forget it" in answer.text


def test_commands_are_answered_while_every_gpu_fails(tmp_path: Path) -> None:
    with bench(tmp_path) as node:
        agent = node.start()
        node.known()
        for uuid in node.uuids:
            node.node.fail(uuid, GpuFault.UNKNOWN)
        assert agent.submit(Hold(by="ada", why="x")).done


def test_a_brake_file_that_is_there_at_the_start_brakes(tmp_path: Path) -> None:
    with bench(tmp_path, settings={"brake_w": 300.0}) as node:
        node.brake_file.write_text("")
        node.start()
        assert_eventually(lambda: node.limits() == [300.0, 300.0], "braked")
        node.known()
        assert node.view(0).original_w == 700.0
        node.brake_file.unlink()
        assert_eventually(
            lambda: any(line["what"] == "brake_file_gone" for line in audit(node)), "gone"
        )
        node.granted(500.0, 500.0)


def test_a_gpu_that_comes_while_braked_is_braked(tmp_path: Path) -> None:
    with bench(tmp_path, gpus=1, settings=ANNOTATED) as node:
        agent = node.start()
        node.known()
        assert agent.submit(Brake(by="ada")).done
        assert_eventually(lambda: node.limits() == [200.0], "braked")
        node.node.add("NVIDIA H100 80GB HBM3")
        assert_eventually(lambda: node.limits() == [200.0, 200.0], "the new one too")
