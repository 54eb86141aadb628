"""The rules of the protocol have one list of names, and the page that explains them keeps to it."""

from __future__ import annotations

import re
from pathlib import Path

from wattline.grants.rules import Rule

HERE = Path(__file__).parent
PAGE = (HERE.parents[2] / "docs/concepts/safety.md").read_text(encoding="utf-8")


def test_every_rule_is_explained() -> None:
    explained = re.findall(r"^\| \*\*(.+?)\*\* \|", PAGE, flags=re.MULTILINE)
    assert explained == [rule.value for rule in Rule]


def test_every_test_that_the_page_names_exists() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted(HERE.glob("test_*.py")))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 25
    assert {name for name in named if f"def {name}(" not in code} == set()
    files = set(re.findall(r"`(test_\w+\.py)`", PAGE))
    assert {name for name in files if not (HERE / name).exists()} == set()
