"""Blocks, specification, page, GPUs and command of a worker."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from live_fixtures import spec

from wattline.core.errors import InputError, WattlineError
from wattline.core.fleet import Role
from wattline.live.environment import Environment
from wattline.live.worker_blocks import LiveCache, Removed, Stored, block_hashes
from wattline.live.worker_command import on_node, worker_command, worker_pool
from wattline.live.worker_gpus import WorkerGpus
from wattline.live.worker_page import Metric, Page
from wattline.live.worker_spec import WorkerSpec, build_engine
from wattline.virtual.node import VirtualNode

pytest_plugins = ("virtual_fixtures",)


def test_a_block_is_named_by_itself_and_all_before_it() -> None:
    tokens = list(range(200))
    hashes = block_hashes(tokens, 64)
    assert len(hashes) == 3
    assert all(-(2**63) <= block < 2**63 for block in hashes)
    assert block_hashes(tokens[:128], 64) == hashes[:2]
    other = block_hashes([9, *tokens[1:]], 64)
    assert not set(other) & set(hashes)
    assert block_hashes(tokens[64:], 64)[0] != hashes[1]
    assert block_hashes(tokens[:63], 64) == ()


def test_the_cache_notes_what_came_and_what_went() -> None:
    cache = LiveCache(2)
    long, short = block_hashes(list(range(8)), 2), block_hashes([0, 1, 7, 7], 2)
    cache.learn(long, list(range(8)))
    cache.insert(long, 100)
    cache.learn(short, [0, 1, 7, 7])
    cache.insert(short, 100)
    assert cache.take() == [Stored(long, tuple(range(8)), None), Stored(short[1:], (7, 7), long[0])]
    assert cache.take() == []
    cache.trim(6)
    (removed,) = cache.take()
    assert isinstance(removed, Removed)
    assert len(removed.hashes) == 2
    assert cache.match(short) == 4, "the newest prompt is kept"
    cache.clear()
    (removed,) = cache.take()
    assert isinstance(removed, Removed)
    assert len(removed.hashes) == 3
    cache.forget(long)
    cache.insert(long, 100)
    assert cache.take() == [], "blocks whose tokens nobody knows cannot be told"


def test_a_specification_survives_its_document(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    told = spec(role=Role.PREFILL, gpus=("GPU-a", "GPU-b"), model_dir=str(tmp_path), startup_s=2.5)
    assert WorkerSpec.from_json(told.to_json()) == told
    other = WorkerSpec.from_json(told.to_json(), ["gpus=GPU-c,GPU-d", "metrics_port=81", "name=x"])
    assert other == replace(told, gpus=("GPU-c", "GPU-d"), metrics_port=81, name="x")
    for word in ("gpus", "model=x", "metrics_port=many"):
        with pytest.raises(InputError, match="gpus, metrics_port and name"):
            WorkerSpec.from_json(told.to_json(), [word])
    assert told.endpoint == "dynamo.prefill.generate"
    assert replace(told, role=Role.DECODE).endpoint == "dynamo.backend.generate"
    assert replace(told, component="mine", namespace="ns").endpoint == "ns.mine.generate"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"role": "router"}, "cannot be used"),
        ({"role": None}, "cannot be used"),
        ({"engine": "magic"}, "roofline, polynomial"),
        ({"block_tokens": 0}, "at least 1"),
        ({"max_num_seqs": "many"}, "at least 1"),
        ({"startup_s": -1}, "86400"),
        ({"drain_s": "long"}, "86400"),
        ({"color": "red"}, "keys are"),
        ({"model_dir": "/no/such/folder"}, "tokenizer.json"),
        ({"gpus": 3}, "cannot be used"),
    ],
)
def test_a_bad_specification_is_refused_in_one_line(
    changes: dict[str, object], word: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    document = json.loads(spec(model_dir=str(tmp_path)).to_json()) | changes
    with pytest.raises(InputError, match=word) as refused:
        WorkerSpec.from_json(json.dumps(document))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "null", '{"role": "decode"}'])
def test_what_is_no_specification_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="worker specification"):
        WorkerSpec.from_json(text)


def test_engines_are_those_of_scenarios() -> None:
    roofline = build_engine(spec(gpus=("a", "b")), "H200")
    mock = build_engine(spec(engine="polynomial", max_num_seqs=7), "H200")
    assert roofline.kv_capacity_tokens > mock.kv_capacity_tokens / 4
    assert mock.max_num_seqs == 7
    with pytest.raises(InputError, match="no-such-model"):
        build_engine(spec(model="no-such-model"), "H200")


def test_the_page_answers_and_survives_nonsense() -> None:
    why: list[str | None] = ["starting"]
    page = Page(
        0,
        {"worker": 'a"b\\c\nd'},
        lambda: [Metric("x_total", "counter", "Things.", 2)],
        lambda: why[0],
    )
    try:
        text = _get(f"{page.url}/metrics")
        assert text == (
            200,
            '# HELP x_total Things.\n# TYPE x_total counter\nx_total{worker="a\\"b\\\\c\\nd"} 2\n',
        )
        assert _get(f"{page.url}/readyz") == (503, "starting\n")
        why[0] = None
        assert _get(f"{page.url}/readyz") == (200, "ready\n")
        assert _get(f"{page.url}/healthz") == (200, "alive\n")
        assert _get(f"{page.url}/nothing")[0] == 404
        with pytest.raises(InputError, match="another port"):
            Page(int(page.url.rpartition(":")[2]), {}, list, lambda: None)
    finally:
        page.close()


def _get(url: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_draw_of_a_gpu_follows_what_the_worker_wants(virtual_node: VirtualNode) -> None:
    control = virtual_node.gpus
    first, second = control.uuids()[:2]
    with WorkerGpus(virtual_node.gpus_file, (first, second)) as gpus:
        assert gpus.product.name == "H100-80GB-HBM3"
        assert gpus.limits_w() == gpus.enforced_w() == (700.0, 700.0)
        gpus.want(500.0, (1.0, 1.0))
        assert control.state(first).draw_w == pytest.approx(500.0)
        control.write_limit(first, 300.0)
        assert gpus.limits_w() == (300.0, 700.0)
        assert control.state(first).draw_w == pytest.approx(0.987 * 300.0)
        # Under a clock ceiling the virtual GPU lowers the draw itself: it is given more.
        gpus.want(400.0, (1.0, 0.5))
        assert control.state(second).load_w == pytest.approx(70.0 + 330.0 / 0.25)
    assert control.state(first).draw_w == control.state(second).draw_w == 70.0


def test_the_chip_obeys_a_settle_time_after_the_register(tmp_path: Path) -> None:
    with VirtualNode(tmp_path / "node", ("h200",), settle_s=3600.0) as node:
        (uuid,) = node.gpus.uuids()
        with WorkerGpus(node.gpus_file, (uuid,)) as gpus:
            node.gpus.write_limit(uuid, 250.0)
            assert gpus.enforced_w() == (250.0,)
            assert gpus.limits_w() == (700.0,)


def test_gpus_that_cannot_be_a_replica_are_refused(tmp_path: Path) -> None:
    with VirtualNode(tmp_path / "node", ("h100", "h200")) as node:
        first, second = node.gpus.uuids()
        for uuids, word in (
            ((), "at least one"),
            ((first, first), "each GPU once"),
            ((first, second), "one product"),
            (("GPU-none",), "no GPU of the node"),
        ):
            with pytest.raises(InputError, match=word):
                WorkerGpus(node.gpus_file, uuids)
        node.gpus.lose(first)
        with (
            WorkerGpus(node.gpus_file, (first,)) as gpus,
            pytest.raises(WattlineError, match="Xid 79"),
        ):
            gpus.clocks()


def test_the_command_of_a_worker(virtual_node: VirtualNode, tmp_path: Path) -> None:
    uuids = virtual_node.gpus.uuids()
    state_file, named = on_node(virtual_node.folder, f"0, {uuids[3]}")
    assert (state_file, named) == (virtual_node.gpus_file, (uuids[0], uuids[3]))
    for gpus, word in (("9", "8 GPUs"), ("GPU-none", "this UUID")):
        with pytest.raises(InputError, match=word):
            on_node(virtual_node.folder, gpus)
    with pytest.raises(InputError, match="there is none"):
        on_node(tmp_path / "nowhere", "0")
    told = spec(gpus=named)
    argv, env = worker_command(Environment(tmp_path / "dynamo"), told, tmp_path / "kv", 1234)
    assert argv[0] == str(tmp_path / "dynamo" / "bin" / "python")
    assert json.loads(argv[-1])["gpus"] == list(named)
    pool = worker_pool(Environment(tmp_path / "dynamo"), told, tmp_path / "kv")
    assert pool.argv[:4] == tuple(argv)
    assert pool.argv[4:] == ("gpus={gpus}", "metrics_port={metrics_port}", "name={replica}")
    assert pool.env["DYN_SYSTEM_PORT"] == "{system_port}"
    assert pool.drain_limit_s > told.drain_s
    assert env["DYN_SYSTEM_PORT"] == "1234"
    assert env["DYN_TCP_RPC_HOST"] == "127.0.0.1"
    assert env["DYN_FILE_KV"] == str(tmp_path / "kv")
    assert [path.name for path in Path(env["PYTHONPATH"]).iterdir()] == ["wattline"]
