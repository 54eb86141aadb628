"""Settings: flags over environment over file, warnings for what is unknown, one line for errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.agent.settings import (
    SETTINGS,
    AgentSettings,
    address_of,
    is_loopback,
    load_settings,
)
from wattline.agent.snapshot import Mode
from wattline.core.errors import InputError

GRANTS = {"grants": "/grants"}


def _file(folder: Path, text: str) -> Path:
    path = folder / "agent.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_field_is_described_once_and_in_order() -> None:
    assert list(SETTINGS) == [field.name for field in dataclasses.fields(AgentSettings)]


def test_defaults_are_values_that_could_be_given() -> None:
    plain = AgentSettings(node="n1")
    for name, setting in SETTINGS.items():
        default = getattr(plain, name)
        if default is not None:
            raw = default if isinstance(default, bool | int | float) else str(default)
            assert setting.reader(name, raw) == default


def test_flags_go_over_environment_over_file(tmp_path: Path) -> None:
    file = _file(tmp_path, "readback_s: 2\nhung_s: 3\nbrake_w: 150\ngrants: /from-file\n")
    env = {"WATTLINE_AGENT_HUNG_S": "4", "WATTLINE_AGENT_BRAKE_W": "160"}
    settings, warnings, origins = load_settings(file, env, {"brake_w": "170", "driver": None})
    assert (settings.readback_s, settings.hung_s, settings.brake_w) == (2.0, 4.0, 170.0)
    assert settings.grants == Path("/from-file")
    assert warnings == ()
    assert origins["readback_s"] == str(file)
    assert origins["hung_s"] == "WATTLINE_AGENT_HUNG_S"
    assert origins["brake_w"] == "--brake-w"
    assert origins["driver"] == "default"


def test_unknown_keys_warn_and_name_the_nearest(tmp_path: Path) -> None:
    file = _file(tmp_path, "redback_s: 2\n7: x\ngrants: /g\n")
    _, warnings, _ = load_settings(file, {"WATTLINE_AGENT_GRANT": "/g"}, {})
    assert len(warnings) == 3
    assert "did you mean `readback_s`?" in warnings[0]
    assert "unknown key `7` is ignored" in warnings[1]
    assert "WATTLINE_AGENT_GRANT is ignored; did you mean `grants`?" in warnings[2]


def test_the_variable_that_names_the_file_is_no_setting() -> None:
    _, warnings, _ = load_settings(None, {"WATTLINE_AGENT_CONFIG": "x"}, GRANTS)
    assert warnings == ()


def test_node_comes_from_the_downward_api_unless_given() -> None:
    env = {"NODE_NAME": "gpu-1"}
    assert load_settings(None, env, GRANTS)[0].node == "gpu-1"
    settings, _, origins = load_settings(None, env, {**GRANTS, "node": "gpu-2"})
    assert (settings.node, origins["node"]) == ("gpu-2", "--node")


def test_the_hosts_name_stands_in_only_without_a_cluster() -> None:
    settings, _, origins = load_settings(None, {}, GRANTS)
    assert settings.node
    assert origins["node"] == "host's name"
    with pytest.raises(InputError, match="NODE_NAME"):
        load_settings(None, {}, {"mode": "annotations", "safe_default_w": "500"})


@pytest.mark.parametrize(
    ("flags", "names", "remedy"),
    [
        ({}, "grants", "--grants"),
        ({"mode": "annotations", "node": "n"}, "safe_default_w", "--safe-default-w"),
        (
            {"mode": "annotations", "node": "n", "safe_default_w": "500", "pods": "none"},
            "pods",
            "kube",
        ),
        ({**GRANTS, "listen": "0.0.0.0:9477"}, "listen", "--token-file"),
        ({**GRANTS, "listen": "example.org:1"}, "listen", "--token-file"),
        ({**GRANTS, "listen": "127.0.0.1"}, "listen", "HOST:PORT"),
        ({**GRANTS, "listen": "127.0.0.1:70000"}, "listen", "HOST:PORT"),
        ({**GRANTS, "mode": "off"}, "mode", "grants"),
        ({**GRANTS, "driver": "rocm"}, "driver", "nvml"),
        ({**GRANTS, "readback_s": "nan"}, "readback_s", "0.1"),
        ({**GRANTS, "readback_s": "0"}, "readback_s", "0.1"),
        ({**GRANTS, "brake_w": "much"}, "brake_w", "100000"),
        ({**GRANTS, "dcgm_port": "5555.5"}, "dcgm_port", "whole"),
        ({**GRANTS, "take_over": "yes"}, "take_over", "true"),
        ({**GRANTS, "node": "a/b"}, "node", "name"),
        ({**GRANTS, "node": ""}, "node", "name"),
        ({**GRANTS, "pods": "file:"}, "pods", "file:PATH"),
        ({**GRANTS, "owners": "kube"}, "owners", "file:PATH"),
        ({"grants": ""}, "grants", "path"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_values_name_the_field_the_value_and_the_remedy(
    flags: dict[str, object], names: str, remedy: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_settings(None, {}, flags)
    text = str(caught.value)
    assert text.startswith(names)
    assert remedy in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "text",
    ["- a\n", "just words", "a: [", "a: b: c", "\x00", "2024-99-99", "[" * 3000],
    ids=["list", "text", "open", "nested", "nul", "date", "deep"],
)
def test_files_that_are_no_settings_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        load_settings(_file(tmp_path, text), {}, GRANTS)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="readable"):
        load_settings(tmp_path / "none.yaml", {}, GRANTS)
    large = _file(tmp_path, "#" * (1 << 20) + "\n")
    with pytest.raises(InputError, match="bytes"):
        load_settings(large, {}, GRANTS)
    not_utf8 = tmp_path / "latin.yaml"
    not_utf8.write_bytes(b"node: \xe4\n")
    with pytest.raises(InputError, match="YAML"):
        load_settings(not_utf8, {}, GRANTS)


def test_an_empty_file_and_empty_values_change_nothing(tmp_path: Path) -> None:
    settings, warnings, _ = load_settings(_file(tmp_path, "brake_w:\n"), {}, GRANTS)
    assert (settings.brake_w, warnings) == (None, ())
    assert load_settings(_file(tmp_path, ""), {}, GRANTS)[0].mode is Mode.GRANTS


def test_pods_are_asked_for_where_annotations_are_obeyed() -> None:
    assert load_settings(None, {}, GRANTS)[0].pod_source == "none"
    flags = {"mode": "annotations", "safe_default_w": 500, "node": "n"}
    assert load_settings(None, {}, flags)[0].pod_source == "kube"
    assert load_settings(None, {}, {**flags, "pods": "file:/p"})[0].pod_source == "file:/p"


@pytest.mark.parametrize(
    ("listen", "address", "loopback"),
    [
        ("127.0.0.1:9477", ("127.0.0.1", 9477), True),
        ("127.9.9.9:0", ("127.9.9.9", 0), True),
        ("[::1]:1", ("::1", 1), True),
        ("localhost:80", ("localhost", 80), True),
        ("0.0.0.0:80", ("0.0.0.0", 80), False),
        ("[::]:80", ("::", 80), False),
        ("localhost.example.org:80", ("localhost.example.org", 80), False),
    ],
    ids=lambda value: str(value),
)
def test_addresses(listen: str, address: tuple[str, int], loopback: bool) -> None:
    assert address_of(listen) == address
    assert is_loopback(address[0]) is loopback


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(name=st.sampled_from(sorted(SETTINGS)), raw=JSONISH)
def test_any_value_is_taken_or_refused_in_one_line(name: str, raw: object) -> None:
    refusal = ""
    try:
        load_settings(None, {}, {"grants": "/g", "node": "n", name: raw})
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert not refusal or "give" in refusal
