"""The README's support table says what the suite runs."""

import re
from pathlib import Path

import pytest
from architectures import ENTRIES
from support_table import LAWS, README, updated

LAW_FILES = sorted(Path(__file__).parent.glob("test_*.py"))


def test_the_readme_holds_the_table_of_this_suite():
    text = README.read_text(encoding="utf-8")
    assert updated(text) == text, "run: python tests/support_table.py"


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_every_limit_belongs_to_a_law(entry):
    assert set(entry.limits) <= {limit for limits in LAWS.values() for limit in limits}


def test_every_limit_that_a_test_names_is_in_the_table():
    named = set()
    for file in LAW_FILES:
        named |= set(re.findall(r'@over\([A-Z]+, "([^"]+)"\)', file.read_text(encoding="utf-8")))
    assert named <= {limit for limits in LAWS.values() for limit in limits}
