import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from parl_cli.config import (
    EvalCommand,
    ReportCommand,
    ResumeCommand,
    option,
    parse,
    parse_component,
    required,
    to_plain,
)
from parl_cli.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    depth: int = option(1, "how deep", ge=0)


@dataclass(frozen=True)
class Outer:
    count: int = option(4, "how many", ge=1, le=100)
    rate: float = option(0.5, "how fast", gt=0, lt=1)
    flag: bool = option(False, "whether")
    text: str = option("a", "which")
    maybe: int | None = option(None, "perhaps", ge=0)
    kind: Literal["one", "two"] | None = option("one", "what kind")
    sizes: list[int] = option([1, 2], "sizes", ge=1)
    kwargs: dict[str, Any] = option({}, "open")
    inner: Inner = option(Inner(), "inside")


def message(values: Any, cls: type = Outer) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(cls, values)
    return str(caught.value)


def test_nothing_given_gives_the_defaults():
    assert parse(Outer, {}) == Outer()


def test_a_mutable_default_is_not_shared():
    assert Outer().kwargs is not Outer().kwargs
    assert Outer().sizes is not Outer().sizes


def test_whole_floats_are_whole_numbers():
    parsed = parse(Outer, {"count": 1e2})
    assert parsed.count == 100
    assert type(parsed.count) is int


def test_a_whole_number_becomes_a_float_where_one_is_wanted():
    @dataclass(frozen=True)
    class Wide:
        rate: float = option(0.5, "")

    assert type(parse(Wide, {"rate": 2}).rate) is float


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"count": "x"}, "count=x: must be a whole number, not text"),
        ({"count": 1.5}, "count=1.5: must be a whole number"),
        ({"count": True}, "count=True: must be a whole number"),
        ({"count": None}, "count=null: must be a whole number, not null"),
        ({"count": float("nan")}, "count=nan"),
        ({"count": float("inf")}, "count=inf"),
        ({"count": 10**400}, "count: a number of hundreds of digits"),
        ({"rate": 10**400}, "rate: a number of hundreds of digits"),
        ({"count": 0}, "count=0: must be at least 1"),
        ({"count": 101}, "count=101: must be at most 100"),
        ({"rate": 0}, "rate=0.0: must be greater than 0"),
        ({"rate": 1.0}, "rate=1.0: must be less than 1"),
        ({"rate": float("nan")}, "rate=nan: must be a finite number"),
        ({"rate": float("inf")}, "rate=inf: must be a finite number"),
        ({"flag": "yes"}, "flag=yes: must be true or false"),
        ({"flag": 1}, "flag=1: must be true or false"),
        ({"text": True}, "text=True: must be text"),
        ({"maybe": -1}, "maybe=-1: must be at least 0"),
        ({"maybe": "x"}, "maybe=x: must be a whole number"),
        ({"kind": "tow"}, "kind=tow: did you mean two?"),
        ({"sizes": 3}, "sizes=3: must be a list"),
        ({"sizes": [1, "x"]}, "sizes[1]=x: must be a whole number"),
        ({"sizes": [1, 0]}, "must be at least 1"),
        ({"kwargs": [1]}, "kwargs=[1]: must be a mapping"),
        ({"inner": 3}, "inner=3: must be a group of keys"),
        ({"inner": {"depth": -1}}, "inner.depth=-1: must be at least 0"),
        ({"inner": {"dpeth": 1}}, "unknown key inner.dpeth; did you mean depth?"),
        ({"cuont": 1}, "unknown key cuont; did you mean count?"),
        ([1], "must be a group of keys, not a list"),
    ],
)
def test_what_does_not_fit_is_refused_with_key_value_and_rule(values, words):
    assert words in message(values)


def test_null_is_a_value_where_the_type_allows_it():
    parsed = parse(Outer, {"maybe": None, "kind": None})
    assert parsed.maybe is None
    assert parsed.kind is None


def test_open_mappings_take_any_key():
    assert parse(Outer, {"kwargs": {"gravity": 9.8}}).kwargs == {"gravity": 9.8}


def test_a_required_key_that_is_missing_is_named_with_its_doc():
    @dataclass(frozen=True)
    class Needs:
        path: str = required("where it is")

    assert message({}, Needs) == "missing key path: where it is"


def test_plain_values_parse_back_to_the_same_config():
    config = parse(Outer, {"count": 7, "inner": {"depth": 3}, "kwargs": {"a": [1, {"b": None}]}})
    assert parse(Outer, to_plain(config)) == config


@pytest.mark.parametrize("values", [None, 3, {}, {"learning_rate": 1}])
def test_a_component_needs_a_name(values):
    with pytest.raises(ConfigError, match=r"^algo=.*must be a group with a name"):
        parse_component("algo", values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ann": 475}, "thresholds.ann=475: must be a list, like [a number, …], not a whole number"),
        ({"ann": ["x"]}, "thresholds.ann[0]=x: must be a number, not text"),
        (["x"], "thresholds[0]=x: must be a number, not text"),
        (475, "thresholds=475: must be a mapping, like {key: value} or a list, like [a number, …] or null, not a"),
    ],
)
def test_what_is_wrong_inside_one_of_several_kinds_is_said_of_the_place(values, words):
    assert words in message({"runs": ["x"], "thresholds": values}, ReportCommand)


@pytest.mark.parametrize(("cls", "key"), [(EvalCommand, "checkpoint"), (ResumeCommand, "run")])
def test_commands_ask_for_what_they_cannot_do_without(cls, key):
    assert message({}, cls).startswith(f"missing key {key}: ")


def test_eval_plays_a_hundred_deterministic_episodes_by_default():
    command = parse(EvalCommand, {"checkpoint": "run"})
    assert (command.episodes, command.deterministic, command.render) == (100, True, None)


@pytest.mark.parametrize("values", [{"episodes": 0}, {"render": "video"}, {"seed": -1}, {"num_envs": 0}])
def test_eval_refuses_values_out_of_range(values):
    with pytest.raises(ConfigError):
        parse(EvalCommand, {"checkpoint": "run", **values})


def test_resume_takes_the_way_out_of_an_irreproducible_env():
    command = parse(ResumeCommand, {"run": "run", "checkpoint": {"env": "reset"}})
    assert command.checkpoint.env == "reset"


@pytest.mark.parametrize("cls", [EvalCommand, ResumeCommand])
def test_every_key_of_a_command_is_documented(cls):
    assert all(field.metadata["doc"] for field in dataclasses.fields(cls))
