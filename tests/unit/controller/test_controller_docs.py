"""The controller's pages say what the code does."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import yaml

from wattline.catalog.yaml_files import parse
from wattline.cli.operate import operate
from wattline.controller.reference import reference
from wattline.controller.settings import ControllerSettings, changed_keys, fixed_keys
from wattline.controller.site import build_site

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "guides" / "controller.md").read_text(encoding="utf-8")


def test_the_reference_is_rendered_from_the_code() -> None:
    page = (ROOT / "docs" / "reference" / "controller.md").read_text(encoding="utf-8")
    assert page == reference()


def test_the_guides_file_can_be_used() -> None:
    found = re.search(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    uuids = (f"GPU-{number:08d}" for number in range(8))
    text = re.sub(r"\[GPU-[^]]*\]", lambda _: f"[{', '.join(islice(uuids, 4))}]", found[1])
    settings = parse(ControllerSettings, text, "guide")
    site = build_site(settings, Path("guide"))
    assert len(site.uuid) == 8
    raised = yaml.safe_load(text) | {"budget": {"total_w": 4100}}
    other = parse(ControllerSettings, yaml.safe_dump(raised), "guide")
    assert fixed_keys(changed_keys(settings, other)) == []


def test_every_order_is_in_the_guide() -> None:
    for name in operate.commands:
        assert f"wattline operate {name}" in GUIDE
