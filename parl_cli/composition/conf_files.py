"""The conf/ folders as files: where they are, and what options and comments they hold. Imports no Hydra."""

from __future__ import annotations

import re
from pathlib import Path

from parl_cli import registry
from parl_cli.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]

# `key: value # comment`, a comment being ` #` outside of quotes.
_LINE = re.compile(
    r"""^(?P<indent> *)(?P<key>[\w.-]+):(?P<value>(?:[^'"#]|'[^']*'|"[^"]*"|(?<! )\#)*?)(?: \# ?(?P<doc>.*))?$"""
)


def builtin_conf() -> Path:
    """The conf/ that parl brings: inside the package in an installed wheel, beside it in a checkout."""
    for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"parl's conf/ folder is neither in nor beside {_PACKAGE}; install parl-cli again")


def added_confs(config_dir: str | None = None) -> dict[str, Path]:
    """The config folders besides parl's own, in the order they are searched, by who provides them: plug-ins, the user.

    Raises:
        ConfigError: `config_dir` is no folder.
    """
    found: dict[str, Path] = {}
    for folder in registry.config_dirs():
        name = f"plug-in {folder.parent.name}"
        found[f"{name} ({folder})" if name in found else name] = folder
    if config_dir is not None:
        folder = Path(config_dir).expanduser().resolve()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir={config_dir}: no such folder")
        found["--config-dir"] = folder
    here = Path.cwd() / "conf"
    if here.is_dir() and here.resolve() not in (builtin_conf(), *found.values()):
        found["./conf"] = here.resolve()
    return found


def folders(config_dir: str | None = None) -> list[Path]:
    """Every conf/ folder, first found first."""
    return [builtin_conf(), *added_confs(config_dir).values()]


def groups(config_dir: str | None = None) -> list[str]:
    """The config groups, without Hydra's own."""
    found = {path.name for folder in folders(config_dir) for path in folder.iterdir() if path.is_dir()}
    return sorted(name for name in found if name != "hydra" and options(name, config_dir))


def options(group: str, config_dir: str | None = None) -> dict[str, Path]:
    """The options of a group and their files; those of `tuned` are called `algo/env`."""
    found: dict[str, Path] = {}
    for folder in folders(config_dir):
        for file in sorted((folder / group).rglob("*.yaml")):
            found.setdefault(file.relative_to(folder / group).with_suffix("").as_posix(), file)
    return dict(sorted(found.items()))


def summary(file: Path) -> str:
    """The first sentence of the comment that a YAML file begins with, without an `@package` directive."""
    words = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        words.append(line.removeprefix("#").strip())
    return re.split(r"(?<!et al)\. ", " ".join(words), maxsplit=1)[0].rstrip(".:")


def comments(file: Path) -> dict[str, str]:
    """The comment behind each key of a YAML file, by dotted path; the list of defaults is left out."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        path = [(depth, key) for depth, key in path if depth < indent] + [(indent, match["key"])]
        if match["doc"]:
            found[".".join(key for _, key in path)] = match["doc"].strip()
    return found
