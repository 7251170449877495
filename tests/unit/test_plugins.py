"""How plug-ins are found, imported, and never followed from a file."""

import sys

import pytest

from parl_cli import plugins, registry
from parl_cli.errors import CheckpointError, ConfigError


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test loads ends with it."""
    monkeypatch.setattr(registry, "_TARGETS", {kind: dict(names) for kind, names in registry._TARGETS.items()})
    monkeypatch.setattr(registry, "_CONFIG_DIRS", [])
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])


def ask(modules):
    return f"parl eval 'plugins=[{modules}]'"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into a working directory that is not on the path; forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    written = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("words", "modules"),
    [
        ([], []),
        (["algo=ppo", "plugins=[a]"], ["a"]),
        (["plugins=[a, b.c ]"], ["a", "b.c"]),
        (["+plugins=[a]"], ["a"]),
        (["plugins=['a',\"b\"]"], ["a", "b"]),
        (["plugins=[]"], []),
        (["plugins=[a]", "plugins=[b]"], ["b"]),
        (["name=plugins=[a]"], []),
    ],
)
def test_typed_plugins_are_read_before_hydra_is_there(words, modules):
    assert plugins.typed(words) == modules


@pytest.mark.parametrize("text", ["plugins=a", "plugins=", "plugins=[a],[b]", "plugins=[a;b]", "plugins=[..a]"])
def test_what_is_no_list_of_modules_is_refused(text):
    with pytest.raises(ConfigError, match=r"must be a list of modules, like plugins=\[my_module,other.module\]"):
        plugins.typed([text])


def test_a_module_of_the_working_directory_is_found(module):
    module("parl_test_here", "from parl_cli import registry\nregistry.register('wrapper', 'mine', 'parl_test_here:W')")
    plugins.load(["parl_test_here"])
    assert registry.target("wrapper", "mine") == "parl_test_here:W"
    [plugin] = plugins.loaded()
    assert (plugin.module, plugin.source, plugin.brings) == (
        "parl_test_here",
        "plugins=[parl_test_here]",
        ("wrapper=mine",),
    )


def test_the_working_directory_comes_last_so_that_nothing_installed_is_hidden(module, tmp_path):
    plugins.search_working_directory()
    plugins.search_working_directory()
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_no_plugins_leave_the_path_alone(module):
    before = list(sys.path)
    plugins.activate(["algo=ppo"])
    assert sys.path == before


def test_a_plugin_is_imported_once(module):
    module("parl_test_once", "import sys\nsys.parl_test_count = getattr(sys, 'parl_test_count', 0) + 1")
    plugins.load(["parl_test_once", "parl_test_once"])
    plugins.load(["parl_test_once"])
    assert sys.parl_test_count == 1
    assert len(plugins.loaded()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be imported, no such module; is it installed, or in this folder?"),
        ("import parl_test_missing", "needs the module parl_test_missing, which is not installed"),
        ("1 / 0", "cannot be imported (ZeroDivisionError: division by zero)"),
        ("def f(:", "cannot be imported (SyntaxError: "),
        ("raise SystemExit('bye')", "cannot be imported (SystemExit: bye)"),
        (
            "from parl_cli.registry import register\nregister('algo', 'ppo', 'parl_test_bad:PPO')",
            "cannot register algo=ppo: the name is taken by parl_cli.algos.ppo:PPO; choose another name for "
            "parl_test_bad:PPO",
        ),
        (
            "from parl_cli.registry import register\nregister('algo', 'x', 'parl_test_bad.X')",
            "cannot register algo=x: 'parl_test_bad.X' is not of the form \"module:Class\"",
        ),
        (
            "from parl_cli.registry import add_config_dir\nadd_config_dir('/nowhere/conf')",
            "cannot add the config folder /nowhere/conf: no such folder",
        ),
    ],
)
def test_a_plugin_that_does_not_import_is_named_with_the_reason(text, words, module):
    if text is not None:
        module("parl_test_bad", text)
    with pytest.raises(ConfigError) as error:
        plugins.load(["parl_test_bad"])
    assert str(error.value).startswith("plugins=[parl_test_bad]: ")
    assert words in str(error.value)
    assert not plugins.loaded()


class Entry:
    """An entry point, as importlib.metadata gives it."""

    name = "x"

    class Dist:
        name = "some-package"
        version = "1.2"

    def __init__(self, value, dist=Dist):
        self.value = value
        self.dist = dist


def test_installed_plugins_are_imported_by_name(module, monkeypatch):
    module("parl_test_a", "from parl_cli import registry\nregistry.register('algo', 'one', 'parl_test_a:A')")
    module("parl_test_b", "from parl_cli import registry\nregistry.register('algo', 'one', 'parl_test_b:B')")
    plugins.search_working_directory()
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Entry("parl_test_b"), Entry("parl_test_a")])
    with pytest.raises(ConfigError, match=r"^plug-in parl_test_b of some-package: cannot register algo=one"):
        plugins.activate()
    assert [(plugin.module, plugin.source) for plugin in plugins.loaded()] == [("parl_test_a", "some-package 1.2")]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("parl_test_gone", "cannot be imported, no such module; mend or uninstall some-package"),
        ("parl_test_x:setup", "'parl_test_x:setup' is not the name of a module"),
    ],
)
def test_an_installed_plugin_that_is_broken_names_its_package(value, words, monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Entry(value)])
    with pytest.raises(ConfigError) as error:
        plugins.activate()
    assert str(error.value).startswith(f"plug-in {value} of some-package: ")
    assert words in str(error.value)


def test_a_target_that_is_not_there_is_the_plugins_fault(module):
    module("parl_test_empty", "")
    plugins.search_working_directory()
    registry.register("algo", "hollow", "parl_test_empty:Nothing")
    with pytest.raises(ConfigError, match=r"algo=hollow: cannot load parl_test_empty:Nothing, which a plug-in"):
        registry.load("algo", "hollow")


def test_a_run_with_plugins_asks_for_them_with_the_whole_command(module):
    module("parl_test_needed", "import sys\nsys.parl_test_imported = True")
    values = {"plugins": ["parl_test_needed", "other"]}
    with pytest.raises(ConfigError) as error:
        plugins.require(values, [], ask)
    assert str(error.value).endswith("run parl eval 'plugins=[parl_test_needed,other]'")
    assert not hasattr(sys, "parl_test_imported")


def test_more_plugins_than_the_run_needs_are_no_mistake(module):
    for name in ("parl_test_one", "parl_test_two"):
        module(name, "")
    plugins.require({"plugins": ["parl_test_one"]}, ["parl_test_two", "parl_test_one"], ask)
    with pytest.raises(ConfigError, match=r"run parl eval 'plugins=\[parl_test_two,parl_test_three\]'"):
        plugins.require({"plugins": ["parl_test_three"]}, ["parl_test_two"], ask)


def test_an_installed_plugin_need_not_be_named_again(module, monkeypatch):
    module("parl_test_installed", "")
    plugins.search_working_directory()
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Entry("parl_test_installed")])
    plugins.activate()
    plugins.require({"plugins": ["parl_test_installed"]}, [], ask)


def test_an_installed_plugin_is_found_by_who_composed_nothing(module, monkeypatch):
    """`Experiment.load` in a fresh process."""
    module("parl_test_unasked", "")
    plugins.search_working_directory()
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Entry("parl_test_unasked")])
    plugins.require({"plugins": ["parl_test_unasked"]}, [], ask)


@pytest.mark.parametrize("names", [7, "os", ["a", 1], ["a'; rm -rf ~ '"], ["../x"], ["a b"], [""]])
def test_plugins_of_a_file_that_are_no_module_names_are_tampering(names):
    with pytest.raises(CheckpointError, match="tampered"):
        plugins.require({"plugins": names}, [], ask)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"algo": {"name": "gone"}}, "algo=gone"),
        ({"policy": {"name": "gone"}}, "policy=gone"),
        ({"vectorizer": {"name": "gone"}}, "vectorizer=gone"),
        ({"env": {"adapter": "gone"}}, "adapter=gone"),
        ({"env": {"wrappers": ["time_limit", "gone"]}}, "wrapper=gone"),
        ({"env": {"wrappers": [{"gone": {"num": 4}}]}}, "wrapper=gone"),
    ],
)
def test_what_nothing_registers_any_more_is_named_by_kind_and_name(values, words):
    with pytest.raises(CheckpointError) as error:
        plugins.require(values, [], ask)
    assert str(error.value).startswith(f"{words}: this run used it, and nothing here registers it")
    assert "install the package" in str(error.value)


@pytest.mark.parametrize("values", [{}, {"env": 3}, {"env": {"wrappers": 3, "adapter": []}}, {"algo": None}])
def test_configs_of_a_wrong_shape_are_left_to_the_parser(values):
    plugins.require(values, [], ask)
