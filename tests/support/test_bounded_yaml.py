"""YAML with aliases, against PyYAML."""

from __future__ import annotations

import pytest
import yaml

from cifar_resnets.support.bounded_yaml import check_aliases, load_bounded

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGED = "a0: &a0 {x: 1, y: 2}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize("text", ["", "5", "[1, {a: 2}]", "a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}}"])
def test_it_loads_what_pyyaml_loads(text: str) -> None:
    assert load_bounded(text) == yaml.safe_load(text)
    check_aliases(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "stand for more than 100,000 values"),
        (MERGED, "stand for more than 100,000 values"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a [1]\nb: *a\nc: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: &a 1\nb: &a 2\nc: *a", "duplicate anchor"),
    ],
)
def test_aliases_without_end_are_refused(text: str, problem: str) -> None:
    for load in (load_bounded, check_aliases):
        with pytest.raises(yaml.YAMLError, match=problem):
            load(text)


@pytest.mark.parametrize("number", ["0x" + "f" * 6000, "1:" * 100_000 + "1"])
def test_a_number_that_python_does_not_print_is_refused(number: str) -> None:
    with pytest.raises(yaml.YAMLError, match="digits"):
        load_bounded(f"a: {number}")
