import subprocess
import sys

import pytest

from mtlbench.data.names import choose, expand, nearest, task_names

SCHOOL = {"school": {"type": "regression", "dataset": "s", "column": "score", "split_by": "school", "values": 3}}
PLAIN = {
    "intent": {"type": "classification", "dataset": "d", "column": "intent", "labels": [0, 1]},
    "slots": {"type": "tagging", "dataset": "d", "column": "slots"},
    "topics": {"type": "multilabel", "dataset": "d", "columns": ["label:*"]},
}


def test_split_by_unfolds_into_one_task_a_value():
    assert task_names(SCHOOL) == ["school_0", "school_1", "school_2"]
    assert expand(SCHOOL)["school_2"].where == ("school", 2)
    listed = {"s": {**SCHOOL["school"], "values": ["a", "b"]}}
    assert task_names(listed) == ["s_a", "s_b"]


def test_nodes_hold_what_the_yaml_says():
    nodes = expand(PLAIN)
    assert nodes["intent"].labels == ("0", "1")
    assert nodes["topics"].column == ("label:*",)
    assert nodes["slots"].labels is None
    assert nodes["slots"].where is None


def test_choose_keeps_the_order_of_the_benchmark():
    assert list(choose(PLAIN, ["slots", "intent"])) == ["intent", "slots"]
    assert list(choose(PLAIN, None)) == list(PLAIN)
    assert list(choose(SCHOOL, ["school_1"])) == ["school_1"]


@pytest.mark.parametrize(
    ("select", "message"),
    [(["slot"], "Did you mean slots"), ([], "at least one task"), (["slots", "slots"], "each once")],
)
def test_choose_refuses(select, message):
    with pytest.raises(ValueError, match=message):
        choose(PLAIN, select)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"dataset": "d", "column": "c"}, "lacks 'type'"),
        ({"type": "regression", "column": "c"}, "lacks 'dataset'"),
        ({"type": "regression", "dataset": "d"}, "lacks 'column'"),
        ({"type": "clasification", "dataset": "d", "column": "c"}, "has type 'clasification'; expected one of"),
        ({"type": "regression", "dataset": "d", "column": "c", "split_by": "g"}, "no 'values'"),
    ],
)
def test_expand_refuses(node, message):
    with pytest.raises(ValueError, match=message):
        expand({"t": node})


def test_two_tasks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="called 'school_1'"):
        expand({**SCHOOL, "school_1": PLAIN["intent"]})


def test_nearest_shortens_long_lists():
    assert nearest("task_3", [f"task_{n}" for n in range(30)]).endswith("(30 in all).")


def test_names_are_known_without_torch_and_pandas():
    code = "import sys, mtlbench.data.names; print(sorted({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
