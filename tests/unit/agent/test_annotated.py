"""Limits from annotations: vectors of Dynamo's Power Agent, and what must hold for any input."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.agent.annotated import Action, Decision, PodIndex, clamp, decide, parse_limit
from wattline.agent.metric_catalogue import (
    CLAMPED_TO_MAX,
    CLAMPED_TO_MIN,
    MULTI_POD_AGREE,
    MULTI_POD_CONFLICT,
    SAFE_DEFAULT_APPLIED,
)
from wattline.agent.snapshot import Reason
from wattline.drivers.gpu.device import LimitRange
from wattline.drivers.pods import LIMIT_ANNOTATION, Pod, PodName

VECTORS = Path(__file__).parents[2] / "vectors"
RANGE = LimitRange(200.0, 700.0)


def _vectors(name: str) -> Any:
    return json.loads((VECTORS / f"power_agent_{name}.json").read_text(encoding="utf-8"))


def _cases(name: str) -> pytest.MarkDecorator:
    cases = _vectors(name)["cases"]
    return pytest.mark.parametrize("case", cases, ids=[case.get("name", "") for case in cases])


def _pods(limits: list[str | None], namespace: str = "team") -> list[Pod]:
    return [Pod(namespace, f"pod-{i}", f"uid-{i}", limit) for i, limit in enumerate(limits)]


def _decide(limits: list[str | None], *, ours: bool = False, by_uid: bool = False) -> Decision:
    pods = _pods(limits)
    owners: list[PodName | str] = [
        pod.uid if by_uid else PodName(pod.namespace, pod.name) for pod in pods
    ]
    return decide(owners, PodIndex(pods), ours=ours, limits=RANGE, safe_default_w=500.0)


@pytest.mark.parametrize("by_uid", [False, True], ids=["by-name", "by-uid"])
@_cases("shared_gpu")
def test_pods_on_one_gpu(case: dict[str, Any], by_uid: bool) -> None:
    decision = _decide(case["limits"], by_uid=by_uid)
    assert decision.watts == case["watts"]
    assert decision.reason == case["reason"]
    counters = Counter(decision.counters)
    assert counters == +Counter(
        {
            MULTI_POD_AGREE: case["agree"],
            MULTI_POD_CONFLICT: case["conflict"],
            SAFE_DEFAULT_APPLIED: case["safe"],
        }
    )


@_cases("scope")
def test_scope(case: dict[str, Any]) -> None:
    key = _vectors("scope")["key"]
    assert key == LIMIT_ANNOTATION
    limits = [(annotations or {}).get(key) for annotations in case["pods"]]
    alone = [_decide([limit]) for limit in limits]
    obeyed = [
        limit
        for limit, decision in zip(limits, alone, strict=True)
        if decision.action is Action.ENFORCE
    ]
    assert obeyed == case["in_scope"]
    assert all(d.reason is Reason.LEFT_ALONE for d in alone if d.action is not Action.ENFORCE)


@pytest.mark.parametrize(
    "case", _vectors("clamp")["cases"], ids=lambda case: f"{case['asked_w']}-{case['range_w']}"
)
def test_clamp(case: dict[str, Any]) -> None:
    limits = None if case["range_w"] is None else LimitRange(*case["range_w"])
    counter = {None: None, "min": CLAMPED_TO_MIN, "max": CLAMPED_TO_MAX}[case["direction"]]
    assert clamp(case["asked_w"], limits) == (case["watts"], counter)


@_cases("reconcile")
def test_release_and_failed_listings(case: dict[str, Any]) -> None:
    if case["owners"] is None:
        decision = decide(None, PodIndex([]), ours=case["ours"], limits=RANGE, safe_default_w=500)
        assert decision.reason is Reason.FROZEN
    else:
        decision = _decide(case["owners"], ours=case["ours"])
    assert decision.action == case["action"]
    assert decision.watts == case.get("watts")


def test_a_failed_listing_of_pods_freezes_whoever_holds_the_gpu() -> None:
    for ours in (False, True):
        decision = decide(["uid-1"], None, ours=ours, limits=RANGE, safe_default_w=500.0)
        assert (decision.action, decision.reason) == (Action.KEEP, Reason.FROZEN)
        assert decision.note == "the listing of pods failed"


def test_a_limit_of_ours_is_kept_for_the_worker_that_comes_back() -> None:
    decision = _decide([], ours=True)
    assert (decision.action, decision.reason) == (Action.KEEP, Reason.KEPT)


def test_the_safe_default_is_brought_into_the_range_too() -> None:
    decision = decide(
        ["uid-0"],
        PodIndex(_pods(["x"])),
        ours=False,
        limits=LimitRange(100.0, 400.0),
        safe_default_w=500.0,
    )
    assert (decision.watts, decision.asked_w) == (400.0, 500.0)
    assert decision.counters == (SAFE_DEFAULT_APPLIED, CLAMPED_TO_MAX)


@pytest.mark.parametrize(
    ("text", "watts"),
    [
        ("480", 480),
        (" 480\n", 480),
        ("+480", 480),
        ("0480", 480),
        ("999999999", 999999999),
        ("1000000000", None),
        ("9" * 5000, None),
        ("0", None),
        ("-480", None),
        ("480.0", None),
        ("4.8e2", None),
        ("0x1e0", None),
        ("4_80", None),
        ("480W", None),
        ("480 W", None),
        ("\uff14\uff18\uff10", None),
        ("\u0664\u0668\u0660", None),
        ("480\x00", None),
        ("\u00a0480", None),
        ("", None),
        (" ", None),
        ("nan", None),
        ("+", None),
    ],
    ids=lambda value: ascii(value)[:14],
)
def test_parse(text: str, watts: int | None) -> None:
    assert parse_limit(text) == watts


@given(st.text(max_size=40))
def test_parse_agrees_with_int_where_it_says_anything(text: str) -> None:
    watts = parse_limit(text)
    if watts is not None:
        assert watts == int(text)
        assert 0 < watts < 10**9


def test_values_that_mean_the_same_agree() -> None:
    assert _decide(["480", " 480 ", "+480"]).reason is Reason.ANNOTATED


def test_a_pod_that_the_listing_does_not_have_changes_nothing() -> None:
    index = PodIndex([])
    for ours in (False, True):
        decision = decide(
            [PodName("team", "new")], index, ours=ours, limits=RANGE, safe_default_w=500.0
        )
        assert (decision.action, decision.reason) == (Action.KEEP, Reason.FROZEN)
        assert decision.note is not None
        assert "team/new" in decision.note


def test_an_unknown_pod_beside_an_annotated_one_fails_safe() -> None:
    index = PodIndex(_pods(["350"]))
    owners: list[PodName | str] = ["uid-0", "uid-unknown"]
    fresh = decide(owners, index, ours=False, limits=RANGE, safe_default_w=500.0)
    assert (fresh.watts, fresh.reason) == (500.0, Reason.SAFE_DEFAULT_CONFLICT)
    ours = decide(owners, index, ours=True, limits=RANGE, safe_default_w=500.0)
    assert (ours.action, ours.reason) == (Action.KEEP, Reason.FROZEN)


def test_pods_outside_the_listed_namespace_never_opted_in() -> None:
    index = PodIndex(_pods(["350"]), namespace="team")
    other = [PodName("other", "pod")]
    assert (
        decide(other, index, ours=False, limits=RANGE, safe_default_w=500.0).reason
        is Reason.LEFT_ALONE
    )
    mixed = [*other, PodName("team", "pod-0")]
    assert decide(mixed, index, ours=False, limits=RANGE, safe_default_w=500.0).watts == 500.0


def test_a_pod_that_has_ended_holds_nothing() -> None:
    done = Pod("team", "job", "uid-old", "300", finished=True)
    decision = decide(
        [PodName("team", "job")], PodIndex([done]), ours=True, limits=RANGE, safe_default_w=500.0
    )
    assert decision.reason is Reason.KEPT


@pytest.mark.parametrize("order", [1, -1], ids=["old-first", "new-first"])
def test_a_name_used_again_means_the_pod_that_lives(order: int) -> None:
    pods = [
        Pod("team", "job", "uid-old", "300", finished=True),
        Pod("team", "job", "uid-new", "400"),
    ][::order]
    decision = decide(
        [PodName("team", "job")], PodIndex(pods), ours=False, limits=RANGE, safe_default_w=500.0
    )
    assert decision.watts == 400.0


def test_a_static_pod_is_known_by_both_of_its_uids() -> None:
    pod = Pod("kube-system", "static", "mirror", "300", static_uid="d41d8cd98f00b204")
    owners = ["mirror", "d41d8cd98f00b204"]
    decision = decide(owners, PodIndex([pod]), ours=False, limits=RANGE, safe_default_w=500.0)
    assert (decision.watts, decision.counters) == (300.0, ())


LIMITS = st.lists(
    st.one_of(st.none(), st.sampled_from(["480", "350", "", "x", "99999"]), st.text(max_size=8)),
    max_size=4,
)


@given(limits=LIMITS, ours=st.booleans(), strangers=st.integers(0, 2), data=st.data())
def test_any_mixture_is_decided_inside_the_range_and_in_any_order(
    limits: list[str | None], ours: bool, strangers: int, data: st.DataObject
) -> None:
    pods = _pods(limits)
    owners = [pod.uid for pod in pods] + [f"stranger-{i}" for i in range(strangers)]
    decision = decide(owners, PodIndex(pods), ours=ours, limits=RANGE, safe_default_w=500.0)
    shuffled = data.draw(st.permutations(owners))
    again = decide(shuffled, PodIndex(pods[::-1]), ours=ours, limits=RANGE, safe_default_w=500.0)
    assert again == decision
    if decision.action is Action.ENFORCE:
        assert decision.watts is not None
        assert 200.0 <= decision.watts <= 700.0
        assert any(limit is not None for limit in limits)
    else:
        assert decision.watts is None
        assert not decision.counters
    if decision.action is Action.RELEASE:
        assert ours
        assert limits
        assert not strangers
    if decision.note is not None:
        assert decision.note.isprintable()
