from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest

from cgspn.registry import BACKBONES, OPERATORS, Raw, Registry, merge

PARTS = Registry("part", locations=[], context=("dim",))
PartConfig = Annotated[Mapping[str, Any], PARTS]


@PARTS.register_module(name="leaf")
class Leaf:
    def __init__(self, dim: int, size: int = 1, mode: Literal["fast", "exact"] = "fast") -> None:
        self.dim, self.size, self.mode = dim, size, mode


@PARTS.register_module(name="tree")
class Tree:
    def __init__(
        self,
        dim: int,
        part: PartConfig = {"type": "leaf", "size": 3},  # noqa: B006
        other: PartConfig | None = None,
        at: Sequence[int] = (),
        scale: float | None = None,
    ) -> None:
        self.part = PARTS.build(part, dim=dim)
        self.other = None if other is None else PARTS.build(other, dim=dim)
        self.at, self.scale = at, scale


PARTS.register_preset("big_tree", Tree, part={"type": "leaf", "size": 9}, scale=2.0)


def test_build_takes_arguments_of_the_node_before_those_of_the_owner():
    assert PARTS.build({"type": "leaf"}, dim=4, unknown_to_leaf=1).dim == 4
    assert PARTS.build({"type": "leaf", "dim": 5}, dim=4).dim == 5


def test_preset_is_its_class_with_other_defaults():
    tree = PARTS.build({"type": "big_tree"}, dim=4)
    assert isinstance(tree, Tree)
    assert (tree.part.size, tree.scale) == (9, 2.0)
    assert PARTS.build({"type": "big_tree", "scale": None}, dim=4).scale is None


def test_nested_node_without_type_is_laid_over_the_default():
    assert PARTS.build({"type": "big_tree", "part": {"mode": "exact"}}, dim=4).part.__dict__ == {
        "dim": 4,
        "size": 9,
        "mode": "exact",
    }


def test_bare_name_is_a_node():
    assert PARTS.check({"type": "tree", "other": "leaf"}) == {"type": "tree", "other": {"type": "leaf"}}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"type": "leef"}, "part: Unknown part 'leef'; did you mean 'leaf'? Valid: big_tree, leaf, tree."),
        ({"size": 1}, "part: expected a mapping with the key 'type', got {'size': 1}."),
        (3, "part: expected a mapping with the key 'type', got 3."),
        (
            {"type": "leaf", "sise": 1},
            "part: Unknown argument of leaf 'sise'; did you mean 'size'? Valid: dim, mode, size.",
        ),
        ({"type": "leaf", "size": "many"}, "part.size: expected int, got 'many'."),
        ({"type": "leaf", "size": 1.5}, "part.size: expected int, got 1.5."),
        ({"type": "leaf", "size": True}, "part.size: expected int, got True."),
        ({"type": "leaf", "mode": "slow"}, "part.mode: expected Literal['fast', 'exact'], got 'slow'."),
        ({"type": "tree", "at": [1, "x"]}, "part.at: expected collections.abc.Sequence[int], got [1, 'x']."),
        ({"type": "tree", "part": None}, "part.part: expected a mapping with the key 'type', got None."),
        (
            {"type": "tree", "part": {"type": "tree", "part": {"type": "leef"}}},
            "part.part.part: Unknown part 'leef'",
        ),
        ({"type": "tree", "other": {"size": 1}}, "part.other: expected a mapping with the key 'type'"),
    ],
)
def test_check_names_the_value_and_the_valid_choices(node, message):
    with pytest.raises(ValueError, match=r"^part") as error:
        PARTS.check(node)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_check_converts_values():
    node = {
        "type": "tree",
        "scale": 1,
        "at": (0, 1),
        "part": {"type": "leaf", "size": Raw("7"), "mode": Raw("exact")},
    }
    checked = PARTS.check(node)
    assert checked["scale"] == 1.0
    assert list(checked["at"]) == [0, 1]
    assert checked["part"] == {"type": "leaf", "size": 7, "mode": "exact"}


def test_missing_argument_is_an_error():
    registry = Registry("thing", locations=[])

    @registry.register_module(name="needy")
    class Needy:
        def __init__(self, weight: int) -> None: ...

    with pytest.raises(ValueError, match="thing: needy needs the argument 'weight'"):
        registry.check({"type": "needy"})


def test_duplicate_name_is_an_error():
    with pytest.raises(KeyError, match=r"leaf is already registered in part"):
        PARTS.register_module(name="leaf", module=Tree)
    with pytest.raises(KeyError, match=r"tree is already registered in part"):
        PARTS.register_preset("tree", Tree)


def test_preset_with_unknown_default_is_an_error():
    with pytest.raises(ValueError, match=r"'bad' sets \['depht'\], which Tree does not take"):
        PARTS.register_preset("bad", Tree, depht=3)


@pytest.mark.parametrize(
    ("base", "overlay", "merged"),
    [
        ({"type": "a", "x": 1, "y": 2}, {"y": 3}, {"type": "a", "x": 1, "y": 3}),
        ({"type": "a", "x": 1}, {"type": "a", "y": 3}, {"type": "a", "x": 1, "y": 3}),
        ({"type": "a", "x": 1}, {"type": "b", "y": 3}, {"type": "b", "y": 3}),
        ({"type": "a", "x": 1}, "b", {"type": "b"}),
        ({"type": "a", "x": 1}, "a", {"type": "a", "x": 1}),
        ("a", {"x": 1}, {"type": "a", "x": 1}),
        ({"x": 1}, {"type": "a"}, {"x": 1, "type": "a"}),
        (
            {"type": "a", "n": {"type": "b", "x": 1}},
            {"n": {"x": 2}},
            {"type": "a", "n": {"type": "b", "x": 2}},
        ),
        ({"type": "a", "n": {"type": "b", "x": 1}}, {"n": {"type": "c"}}, {"type": "a", "n": {"type": "c"}}),
        ({"type": "a", "n": {"type": "b"}}, {"n": None}, {"type": "a", "n": None}),
        ({"type": "a", "l": [1, 2]}, {"l": [3]}, {"type": "a", "l": [3]}),
        (None, {"type": "a"}, {"type": "a"}),
    ],
)
def test_merge(base, overlay, merged):
    assert merge(base, overlay) == merged


def test_built_in_entries_are_found_without_importing_them():
    assert {"attention", "cgspn", "gspn", "gspn2"} <= set(OPERATORS.names())
    assert {"vit_base_patch16", "cgspn_base_patch16", "cgspn_so400m_patch14"} <= set(BACKBONES.names())
