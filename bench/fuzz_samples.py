"""Valid input for every parser of the agent: what the mutations start from."""

from __future__ import annotations

from wattline.agent.journal import GpuRecord, JournalState
from wattline.agent.journal import encode as encode_journal
from wattline.drivers.grant_files import (
    GpuFacts,
    GpuGrant,
    GpuReport,
    GrantFile,
    NodeReport,
    encode_grants,
    encode_report,
)
from wattline.drivers.grant_log import FORMAT
from wattline.drivers.grant_records import encode_record
from wattline.drivers.pods import LIMIT_ANNOTATION
from wattline.grants.messages import Adopt, Grant, Report
from wattline.grants.records import Compacted, Granted, Opened

NODE = "node-1"
GPUS = tuple(f"GPU-00000000-0000-4000-8000-{place:012d}" for place in range(4))
UID = "cafe0001-dead-0002-beef-000300000004"


def grant_samples() -> list[bytes]:
    grants = [
        GpuGrant(
            grant=Grant(
                gpu=gpu,
                incarnation=123,
                epoch=3,
                sequence=12 + place,
                watts=400.0 + place,
                brake_w=200.0,
                lease_s=30.0,
                expiry_w=300.0 if place else None,
                budget_version=17,
            ),
            clock_mhz=1500 if place else None,
        )
        for place, gpu in enumerate(GPUS)
    ]
    adopt = Adopt(gpu="GPU-a", incarnation=123, epoch=3, sequence=2)
    files = (
        GrantFile(node=NODE, epoch=3, budget_version=17, grants=tuple(grants), adopt=(adopt,)),
        GrantFile(node=NODE, epoch=4, restore=GPUS[:2]),
    )
    return [encode_grants(file) for file in files]


def report_samples() -> list[bytes]:
    said = Report(
        gpu=GPUS[0],
        incarnation=123,
        epoch=3,
        sequence=12,
        report_sequence=5,
        enforced_w=400.0,
        held_w=400.0,
        standing_s=3.5,
    )
    facts = GpuFacts(index=0, product="NVIDIA H200", min_w=200.0, max_w=700.0, owners=("a/b",))
    gpus = (
        GpuReport(gpu=GPUS[0], report=said, facts=facts),
        GpuReport(gpu=GPUS[1], report=None, facts=GpuFacts(fault="lost")),
    )
    report = NodeReport(
        node=NODE, version="0.2", incarnation=123, report_sequence=5, mode="grants", gpus=gpus
    )
    return [encode_report(report)]


def journal_samples() -> list[bytes]:
    record = GpuRecord(
        original_w=700.0, ours_w=(400.0, 500.0), held_w=500.0, brake_w=200.0, lease_s=30.0
    )
    states = (
        JournalState(),
        JournalState(
            incarnation=7,
            epoch=3,
            budget_version=17,
            operator_hold="ann: PSU",
            gpus=dict.fromkeys(GPUS, record),
        ),
    )
    return [encode_journal(state) for state in states]


LOG_LINES: list[dict[str, object]] = [
    {"format": FORMAT, "epoch": 3, "records": [encode_record(record)]}
    for record in (
        Opened(3),
        Granted(3, GPUS[0], 123, 12, 400_000, 500_000),
        Compacted(3, ((GPUS[0], 400_000), (GPUS[1], 700_000))),
    )
]
PODS_DOCUMENTS: list[object] = [
    {
        "pods": [
            {
                "namespace": "serving",
                "name": "decode-0",
                "uid": UID,
                "annotations": {LIMIT_ANNOTATION: "400"},
                "phase": "Running",
            },
            {"namespace": "serving", "name": "prefill-0", "uid": "uid-2", "phase": "Failed"},
        ]
    }
]
OWNERS_DOCUMENTS: list[object] = [
    {"gpus": {gpu: [{"namespace": "serving", "name": "decode-0"}] for gpu in GPUS}}
]
STATE_DOCUMENTS: list[object] = [{"managed_uuids": list(GPUS)}, {"managed_uuids": []}]
COMMAND_DOCUMENTS: list[object] = [
    {"by": "ann"},
    {"by": "ann", "why": "PSU 2"},
    {"by": "ann", "why": "hot", "gpu": "3", "watts": 300.0},
    {"by": "ann", "gpu": GPUS[0]},
]
POD_OBJECTS: list[object] = [
    {
        "metadata": {
            "namespace": "serving",
            "name": "decode-0",
            "uid": UID,
            "annotations": {LIMIT_ANNOTATION: "400", "kubernetes.io/config.mirror": "f" * 32},
        },
        "spec": {
            "containers": [{"name": "w", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}}}],
            "resourceClaims": [{"name": "gpu"}],
        },
        "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z"},
    }
]
SLICES: list[object] = [
    [
        {
            "spec": {
                "driver": "gpu.nvidia.com",
                "pool": {"name": "node-1", "generation": 2},
                "devices": [
                    {
                        "name": "gpu-0",
                        "attributes": {"uuid": {"string": GPUS[0]}, "index": {"int": 0}},
                    },
                    {"name": "gpu-1", "basic": {"attributes": {"uuid": {"string": GPUS[1]}}}},
                ],
            }
        }
    ]
]
SETTINGS_DOCUMENTS: list[object] = [
    {
        "node": "gpu-node-1",
        "mode": "annotations",
        "safe_default_w": 500,
        "pods": "file:/tmp/pods.json",
        "owners": "auto",
        "listen": "[::1]:9477",
        "driver": "simulated",
        "readback_s": 0.5,
        "take_over": False,
        "state_dir": "/var/lib/wattline-agent",
    },
    {"node": "n", "grants": "/etc/wattline/grants", "brake_w": 200.5, "log_level": "debug"},
]
SETTINGS_TEXTS = (
    b"node: gpu-node-1\nmode: grants\ngrants: /etc/grants\nlisten: 127.0.0.1:9477\n",
    b"# comment\nnode: &n a\nmode: annotations\nsafe_default_w: 5e2\npods: file:x\nnamespace: *n\n",
    b"node: !!python/object/apply:os.system [id]\n",
    b"a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nnode: *b\n",
    b"- node\n- mode\n",
    b"node: n\nmode: annotations\nsafe_default_w: 0x" + b"f" * 5000 + b"\npods: file:x\n",
    b"? 0x" + b"f" * 5000 + b"\n: 1\n",
    # Aliases of aliases: 400 bytes that stand for 43 million texts.
    b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(
        b"a%d: &a%d [%s]\n" % (level, level, b", ".join([b"*a%d" % (level - 1)] * 9))
        for level in range(1, 8)
    )
    + b"node: *a7\n",
    b"? [node]\n: 1\n",
)
ANNOTATIONS = ("400", " 480\n", "+300", "0400", "not-a-number", "", "480.0", "1e3", "-5", "0")
CGROUPS = (
    f"11:devices:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod"
    f"{UID.replace('-', '_')}.slice/cri-containerd-abc.scope\n",
    f"0::/kubepods/besteffort/pod{UID}/crio-{'a' * 64}\n",
    f"0::/../../pod{UID}/abc\n",
    f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{'f' * 32}.slice\n",
    "11:devices:/system.slice/kubelet.service\n",
    "",
)
ENV_VALUES = (
    "",
    "grants",
    "annotations",
    "500",
    "nan",
    "inf",
    "1e999",
    "-1",
    "true",
    "file:/x",
    "127.0.0.1:9477",
    "[::1]:70000",
    "two\nlines",
    "\udcff",
    "x" * 400,
)


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: bytes | str | int) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    body = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(body)) + body


def listing_samples() -> list[bytes]:
    """Answers of PodResources: plugin devices, time slices, MIG, claims, fields of later days."""
    devices = field(1, "nvidia.com/gpu") + field(2, GPUS[0]) + field(2, f"{GPUS[1]}::3")
    mig = (
        field(1, "nvidia.com/mig-1g.10gb") + field(2, "MIG-1234") + field(3, field(1, field(1, 0)))
    )
    claim = field(
        4, field(2, "gpu.nvidia.com") + field(3, "node-1") + field(4, "gpu-0") + field(9, 7)
    )
    container = field(1, "main") + field(2, devices) + field(2, mig) + field(3, b"\x01\x02")
    container += field(5, field(1, "claim") + field(2, "serving") + claim)
    pod = field(1, "decode-0") + field(2, "serving") + field(3, container) + field(3, container)
    bare = field(1, "bare") + field(2, "default")
    return [field(1, pod) + field(1, bare), field(1, bare), b"", field(1, pod) * 20]
