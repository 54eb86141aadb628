"""Joining a listing with pods: names that are used again, pods that either side does not know."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from wattline.drivers.kubelet.join import REUSE_GRACE_S, OwnerJoin
from wattline.drivers.pods import OwnerMethod, Ownership, Pod, PodName

A, B = PodName("default", "a"), PodName("default", "b")


def listing(**gpus: set[PodName]) -> Ownership:
    held = {gpu: frozenset(names) for gpu, names in gpus.items()}
    return Ownership(OwnerMethod.POD_RESOURCES, held)


def pod(
    name: PodName,
    uid: str,
    *,
    finished: bool = False,
    asks_gpu: bool | None = True,
    acknowledged: bool | None = None,
) -> Pod:
    return Pod(
        name.namespace,
        name.name,
        uid,
        limit="300",
        finished=finished,
        asks_gpu=asks_gpu,
        acknowledged=acknowledged,
    )


def doubtful(owners: Mapping[str, frozenset[PodName | str]], gpu: str, uids: set[str]) -> bool:
    """True when the GPU is held by something that is not one of these pods."""
    return not owners[gpu] <= uids


def test_names_become_uids() -> None:
    joined = OwnerJoin().join(listing(g1={A, B}, g2={B}), [pod(A, "ua"), pod(B, "ub")], 0.0)
    assert joined.owners == {"g1": frozenset({"ua", "ub"}), "g2": frozenset({"ub"})}
    assert joined.waiting == ()


def test_uids_of_processes_stay_and_static_pods_become_their_mirrors() -> None:
    mirror = Pod("kube-system", "static", "mirror", None, static_uid="0" * 32)
    ownership = Ownership(
        OwnerMethod.PROCESSES, {"g1": frozenset({"ua", "0" * 32}), "g2": frozenset({"gone"})}
    )
    joined = OwnerJoin().join(ownership, [pod(A, "ua"), mirror], 0.0)
    assert joined.owners == {"g1": frozenset({"ua", "mirror"}), "g2": frozenset({"gone"})}
    assert joined.waiting == ("gone is not among the pods",)


def test_a_pod_that_the_api_server_has_not_told_yet_is_named_and_waited_for() -> None:
    joined = OwnerJoin().join(listing(g1={A}), [], 0.0)
    assert joined.owners == {"g1": frozenset({A})}
    assert joined.waiting == ("default/a is not among the pods",)


def test_pods_of_namespaces_that_are_not_listed_are_not_waited_for() -> None:
    other = PodName("elsewhere", "x")
    joined = OwnerJoin("default").join(listing(g1={other}), [], 0.0)
    assert joined.owners == {"g1": frozenset({other})}
    assert joined.waiting == ()


def test_a_pod_that_asks_for_a_gpu_and_shows_none_is_waited_for() -> None:
    pods = [
        pod(A, "ua"),
        pod(B, "ub", finished=True),
        pod(PodName("default", "c"), "uc", asks_gpu=False),
    ]
    joined = OwnerJoin().join(listing(), pods, 0.0)
    assert joined.waiting == ("default/a shows no GPU",)


def test_unresolved_devices_are_handed_on() -> None:
    ownership = Ownership(OwnerMethod.POD_RESOURCES, {}, ("MIG-x of default/a: of no GPU",))
    assert OwnerJoin().join(ownership, [], 0.0).unresolved == ownership.unresolved


def test_a_new_pod_of_an_old_name_does_not_get_the_old_pods_gpu() -> None:
    join = OwnerJoin()
    join.join(listing(g1={A}), [pod(A, "old")], 0.0)
    joined = join.join(listing(g1={A}), [pod(A, "new")], 1.0)
    assert doubtful(joined.owners, "g1", {"old", "new"})
    assert "default/a has a new UID" in joined.waiting


def test_doubt_ends_when_a_listing_shows_the_name_without_the_gpu() -> None:
    join = OwnerJoin()
    join.join(listing(g1={A}), [pod(A, "old")], 0.0)
    join.join(listing(g1={A}), [pod(A, "new")], 1.0)
    join.join(listing(), [pod(A, "new")], 1.1)
    joined = join.join(listing(g1={A}), [pod(A, "new")], 1.2)
    assert joined.owners == {"g1": frozenset({"new"})}


def test_a_gap_in_the_pods_does_not_hide_the_change() -> None:
    join = OwnerJoin()
    join.join(listing(g1={A}), [pod(A, "old")], 0.0)
    join.join(listing(g1={A}), [], 0.5)
    joined = join.join(listing(g1={A}), [pod(A, "new")], 1.0)
    assert doubtful(joined.owners, "g1", {"new"})


def test_a_gap_in_the_listing_ends_the_old_pod() -> None:
    join = OwnerJoin()
    join.join(listing(g1={A}), [pod(A, "old")], 0.0)
    join.join(listing(), [], 0.5)
    joined = join.join(listing(g1={A}), [pod(A, "new")], 1.0)
    assert joined.owners == {"g1": frozenset({"new"})}


def test_doubt_ends_when_the_kubelet_acknowledges_the_new_pod() -> None:
    join = OwnerJoin()
    join.join(listing(g1={A}), [pod(A, "old")], 0.0)
    unseen = pod(A, "new", acknowledged=False)
    assert doubtful(join.join(listing(g1={A}), [unseen], 1.0).owners, "g1", {"new"})
    seen = pod(A, "new", acknowledged=True)
    assert join.join(listing(g1={A}), [seen], 1.1).owners == {"g1": frozenset({"new"})}


def test_doubt_ends_in_time() -> None:
    join = OwnerJoin()
    join.join(listing(g1={A}), [pod(A, "old")], 0.0)
    pods = [pod(A, "new")]
    assert doubtful(join.join(listing(g1={A}), pods, 1.0).owners, "g1", {"new"})
    late_s = 1.0 + REUSE_GRACE_S
    assert doubtful(join.join(listing(g1={A}), pods, late_s - 0.1).owners, "g1", {"new"})
    assert join.join(listing(g1={A}), pods, late_s).owners == {"g1": frozenset({"new"})}


def test_doubt_is_about_the_old_gpus_only() -> None:
    join = OwnerJoin()
    join.join(listing(g1={A}), [pod(A, "old")], 0.0)
    joined = join.join(listing(g1={A}, g2={A}), [pod(A, "new")], 1.0)
    assert doubtful(joined.owners, "g1", {"new"})
    assert joined.owners["g2"] == {"new"}


NAMES = [PodName("default", name) for name in "abc"]
STEPS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(["g1", "g2"]), st.sets(st.sampled_from(NAMES), min_size=1)),
        st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["u1", "u2", "u3"])),
    ),
    max_size=8,
)


@given(STEPS)
def test_every_holder_is_there_and_every_uid_is_a_pods(
    steps: list[tuple[dict[str, set[PodName]], dict[PodName, str]]],
) -> None:
    join = OwnerJoin()
    for step, (gpus, uids) in enumerate(steps):
        pods = [pod(name, f"{name.name}-{uid}") for name, uid in uids.items()]
        joined = join.join(listing(**gpus), pods, float(step))
        assert joined.owners.keys() == gpus.keys()
        for gpu, owners in joined.owners.items():
            assert len(owners) == len(gpus[gpu])
            sure = {owner for owner in owners if owner in {one.uid for one in pods}}
            unsure = owners - sure
            assert sure <= {f"{name.name}-{uids[name]}" for name in gpus[gpu] if name in uids}
            if unsure:
                assert joined.waiting
