"""The table of attacks is true: each case has the tests that it names, and each test with a case's number is in it."""

import ast
import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/reference/attacks.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (A\d+) \| (.*) \|$", PAGE, flags=re.MULTILINE))
CASES = [f"A{number}" for number in range(1, 41)]


def numbered() -> dict[str, set[str]]:
    """The tests of each case, by the numbers in their names."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_a"):
                for number in re.findall(r"_a(\d+)(?=_)", re.match(r"test(_a\d+)*_", node.name)[0]):  # pyright: ignore[reportOptionalSubscript]
                    found.setdefault(f"A{number}", set()).add(node.name)
    return found


TESTS = numbered()


def test_every_case_is_there_once():
    assert list(ROWS) == CASES
    assert PAGE.count("\n| A") == len(CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_case_names_all_its_tests_and_no_others(case):
    named = re.findall(r"`(test_\w+)`", ROWS[case])
    assert sorted(named) == sorted(TESTS.get(case, ())), "write the row anew"
    assert named, f"{case} has no test"
