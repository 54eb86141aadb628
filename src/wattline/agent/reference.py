"""The table of settings in docs/reference/agent.md, rendered from the settings themselves."""

from __future__ import annotations

from pathlib import Path

from wattline.agent.settings import SETTINGS, AgentSettings


def settings_table() -> str:
    """A row per setting: name, values, default, meaning."""
    plain = AgentSettings(node="")
    lines = ["| setting | values | default | meaning |", "|---|---|---|---|"]
    for name, setting in SETTINGS.items():
        default = _shown(getattr(plain, name))
        lines.append(f"| `{name}` | {setting.values} | {default} | {setting.text} |")
    return "\n".join(lines) + "\n"


def _shown(default: object) -> str:
    if default in (None, ""):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    assert isinstance(default, str | int | Path)
    return f"`{default}`"
