from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.errors import PlanError
from lightning_edge.plan import Plan, parsing

GOOD = "pipelines: [{stages: [{devices: [0]}, {start: b, devices: [1]}]}]\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "plan.yaml"


def refused(file: Path, content: str | bytes) -> PlanError:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PlanError) as caught:
        Plan.from_yaml(file)
    assert caught.value.source == str(file)
    return caught.value


def test_each_problem_names_its_line(file: Path) -> None:
    error = refused(
        file,
        """\
# my plan
pipelines:
  - stages:
      - devices: {0: 0.5, 1: 0.4}

      - start: 3
        devices:
          - 2
          - 2
        in_fligth: 7
      - start: b
micro_batches: many
""",
    )
    assert [problem.split(": ")[:2] for problem in error.problems] == [
        ["line 12", "micro_batches"],
        ["line 4", "pipelines[0].stages[0].devices"],
        ["line 10", "pipelines[0].stages[1].in_fligth"],
        ["line 6", "pipelines[0].stages[1].start"],
        ["line 9", "pipelines[0].stages[1].devices[1]"],
        ["line 11", "pipelines[0].stages[2]"],
    ]
    assert str(error).startswith(f"the plan in {file} has 6 problems:\n  1. line 12: micro_batches")


def test_keys_given_twice(file: Path) -> None:
    first = "line 3: micro_batches: the key "
    text = f"{GOOD}micro_batches: 4\nmicro_batches: 4\n".replace("\nmicro", "\n\nmicro", 1)
    assert refused(file, text).problems == (f'{first}"micro_batches" is given again in line 4',)
    with pytest.raises(PlanError, match='the key "stages" is given twice'):
        Plan.from_json('{"pipelines": [{"stages": [{"devices": [0]}], "stages": []}]}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a plan is a mapping with the key pipelines, found nothing"),
        ("# no\n--- null\n", "line 2: a plan is a mapping with the key pipelines, found nothing"),
        ("just text", 'line 1: a plan is a mapping with the key pipelines, found "just text"'),
        ("a: b: c", "line 1, column 5: not YAML: mapping values are not allowed here"),
        ("a: [1, 2\nb: 3", "line 2, column 2: not YAML: expected ',' or ']', but got ':'"),
        ("a: 1\n---\nb: 2", "line 2, column 1: not YAML: but found another document"),
        ("a: *nobody", "line 1, column 4: not YAML: found undefined alias"),
        ("a: \x07", "not YAML: unacceptable character #x0007"),
        ("a: !!python/object:os.system {}", 'line 1: a: the tag "!!python/object:os.system" means'),
        ("!!set {pipelines}", 'line 1: the tag "!!set" means nothing in a plan: remove it'),
        ("!x pipelines: 3", 'line 1: pipelines: the tag "!x" means nothing in a plan: remove it'),
        ("micro_batches: !!binary NA==", 'line 1: micro_batches: the tag "!!binary" means nothing'),
        ("a: !!int abc", 'line 1: a: "a" is not a key here'),
        ("micro_batches: !!int", "line 1: micro_batches: the number of micro-batches is a whole"),
        (f"micro_batches: {'7' * 5000}", "line 1: micro_batches: the number of micro-batches"),
        ("[" * 5000, "is not a plan: lists and mappings nested more than 12 deep"),
        ("a: " + "[" * 20 + "]" * 20, "is not a plan: lists and mappings nested more than 12"),
        ("? [a, b]\n: 3", 'line 1: ["<a list or mapping>"]: "<a list or mapping>" is not a key'),
        ("&a [*a]", "is not a plan: lists and mappings nested more than 12 deep"),
        ("<<: {pipelines: 3}", 'line 1: ["<<"]: "<<" is not a key here'),
        ("2001-01-01: 2001-13-45", 'line 1: ["2001-01-01"]: "2001-01-01" is not a key here'),
        (f"a: '{'x' * 70_000}'", "is not a plan: longer than 64 KiB"),
        (b"\xff\xfe\x00a", "is not a text in UTF-8: "),
        (b"a: \xed\xa0\x80", "is not a text in UTF-8: "),
    ],
)
def test_texts_that_are_no_plan(file: Path, text: str | bytes, expected: str) -> None:
    found = refused(file, text).problems
    assert any(problem.startswith(expected) for problem in found), found


def test_aliases_may_repeat_but_not_multiply(file: Path) -> None:
    file.write_text(GOOD.replace("[0]", "&all {0: 0.5, 2: 0.5}"))
    assert Plan.from_yaml(file).stages[0].devices == {0: 0.5, 2: 0.5}
    levels = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9)}]\n" for i in range(1, 12))
    error = refused(file, f"k0: &k0 [x]\n{levels}pipelines: *k11\n")
    assert error.problems == (
        "is not a plan: more than 20000 values (aliases repeat what they name)",
    )


def test_a_byte_order_mark_is_no_part_of_the_text(file: Path) -> None:
    file.write_text(GOOD, encoding="utf-8-sig")
    assert len(Plan.from_yaml(file).stages) == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"plan in .*none.yaml has a problem: .* No such file"):
        Plan.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(PlanError, match="cannot be read: Is a directory"):
        Plan.from_yaml(tmp_path)
    with pytest.raises(PlanError, match="cannot be read: embedded null"):
        Plan.from_yaml("a\0b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 1, column 1: not JSON: Expecting value"),
        ('{"a": 1,\n"b" 2}', "line 2, column 5: not JSON: Expecting ':' delimiter"),
        ("[" * 60_000, "is not a plan: lists and mappings nested more than 12 deep"),
        ("7" * 1_000_000, "is not a plan: longer than 64 KiB"),
        ("[" * 20 + "]" * 20, "is not a plan: lists and mappings nested more than 12 deep"),
        ("7" * 5000, "not JSON: Exceeds the limit"),
        ("NaN", "a plan is a mapping with the key pipelines, found nan"),
        ("null", "a plan is a mapping with the key pipelines, found nothing"),
        (f"[{'0,' * 30_000}0]", "is not a plan: more than 20000 values"),
        ('{"\\ud800": 1}', '["\\ud800"]: "\\ud800" is not a key here'),
    ],
)
def test_json_that_is_no_plan(text: str, expected: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text)
    assert any(problem.startswith(expected) for problem in caught.value.problems), caught.value
    assert str(caught.value).encode()


SNIPPETS = st.sampled_from(
    ["pipelines", "stages", "devices", "start", "in_flight", ": ", "- ", "\n", "  ", "[", "]", "{"]
    + ["}", ",", "&a", "*a", "!!int", "!!x", "!", "'", '"', "|", ">", "#", "%", "@", "`", "?", "<<"]
    + ["0", "1.5", "0x1F", ".nan", "-.inf", "1e999", "2001-01-01", "0o8", "1:30", "~", "on", "---"]
    + ["...", "\t", "\r", "\x00", "\ufeff", "\u2028", "\ud83d", "é", "=", "!!binary ", "!!set "]
)


@settings(max_examples=40)
@given(st.lists(SNIPPETS, max_size=25).map("".join) | st.text(max_size=40))
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    for read in (parsing.parse_yaml, parsing.parse_json):
        try:
            tree = read(text, "x")[0]
            Plan.from_mapping(tree)
        except PlanError as error:
            str(error).encode()


@settings(max_examples=40)
@given(st.data())
def test_a_damaged_plan_file_is_a_plan_or_a_plan_error(data: st.DataObject) -> None:
    text = list(yaml.safe_dump(json.loads(json.dumps(yaml.safe_load(GOOD)))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text)))
        text[place : place + data.draw(st.integers(0, 3))] = data.draw(SNIPPETS)
    try:
        tree, _, problems = parsing.parse_yaml("".join(text), "x")
        plan = Plan.from_mapping(tree)
    except PlanError as error:
        str(error).encode()
    else:
        # What is left of the text is a plan: then PyYAML reads the same.
        assert problems or Plan.from_mapping(yaml.safe_load("".join(text))) == plan
