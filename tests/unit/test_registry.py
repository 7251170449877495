import zlib

import pytest

from parl_cli import registry
from parl_cli.errors import ConfigError


@pytest.fixture(autouse=True)
def own_names(monkeypatch):
    """Registrations of a test end with it."""
    monkeypatch.setattr(registry, "_TARGETS", {kind: dict(names) for kind, names in registry._TARGETS.items()})


def test_kinds_and_names_are_listed_in_order():
    assert {"algo", "policy", "vectorizer", "actors", "adapter", "wrapper", "sink"} == set(registry.kinds())
    registry.register("algo", "zzz", "somewhere:Zzz")
    registry.register("algo", "aaa", "somewhere:Aaa")
    assert registry.names("algo")[-2:] == ["zzz", "aaa"]


def test_a_name_is_imported_when_it_is_loaded_and_not_before(tmp_path, monkeypatch):
    (tmp_path / "plug_in_of_a_test.py").write_text("class Thing:\n    Config = check = None\n")
    registry.register("algo", "thing", "plug_in_of_a_test:Thing")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.load("algo", "thing").__module__ == "plug_in_of_a_test"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class Thing(\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("class Thing:\n    check = None\n", "has no attribute 'Config'"),
        ("class Other:\n    pass\n", "has no attribute 'Thing'"),
    ],
)
def test_a_plug_in_that_does_not_load_is_one_line(tmp_path, monkeypatch, text, words):
    module = f"bad_plug_in_{zlib.crc32(text.encode())}"
    (tmp_path / f"{module}.py").write_text(text)
    registry.register("algo", module, f"{module}:Thing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"which a plug-in registered.*mend the plug-in") as caught:
        registry.load("algo", module)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"^algo=pop: no such algo; did you mean .*ppo"):
        registry.load("algo", "pop")


def test_a_name_from_a_file_cannot_name_a_module():
    with pytest.raises(ConfigError, match=r"^algo=os:system: no such algo"):
        registry.load("algo", "os:system")


def test_a_taken_name_is_never_overridden():
    with pytest.raises(ConfigError, match=r"cannot register algo=ppo: the name is taken by parl_cli.*another name"):
        registry.register("algo", "ppo", "evil:PPO")
    assert registry.load("algo", "ppo").__module__ == "parl_cli.algos.ppo"


def test_registering_the_same_twice_is_harmless():
    registry.register("algo", "mine", "mine:Mine")
    registry.register("algo", "mine", "mine:Mine")
    assert registry.names("algo").count("mine") == 1


def test_an_unknown_kind_cannot_be_registered():
    with pytest.raises(ConfigError, match=r"cannot register algos=x: unknown kind; did you mean algo"):
        registry.register("algos", "x", "x:X")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in registry.kinds() for name in registry.names(kind)])
def test_every_registered_name_leads_to_something_that_can_be_called(kind, name):
    assert callable(registry.load(kind, name))
