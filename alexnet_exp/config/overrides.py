"""Prepare the command line for Hydra: bare words get keys, paths are quoted, mistakes end in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from alexnet_exp.config import words
from alexnet_exp.config.compose import chosen_files, compose, options, with_recorded_spelling
from alexnet_exp.config.hydra_internals import get_args_parser, known_flags
from alexnet_exp.config.paths import PATH_KEYS, PATH_LISTS
from alexnet_exp.errors import UserError, nearest
from alexnet_exp.settings import GROUPS, assigned, is_quoted, parse, quote, unquoted
from alexnet_exp.tracking.redact import check_tracker_setting

# Groups that take exactly one file; the others can be lists.
_SINGLE = ("model", "data", "augment", "optimizer", "scheduler", "trainer", "paths")

# Paths and prose: spaces, commas, '=' and a leading '/' are literal.
LITERAL_KEYS = (*PATH_KEYS, "logger.wandb.notes", "where", "sort", "metric")

_FOLDER_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp")
_FLAGS_WITH_VALUE = (
    "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package", "-p",
    "--info", "-i", "--experimental-rerun",
)  # fmt: skip
_NULL = ("null", "none", "")
_OWN_CLASS = re.compile(r"(?:logger|callbacks)\.\w+\._target_")


def prepare(arguments: list[str], bare_words: tuple[str, ...] = (), verb: str = "train") -> list[str]:
    """Assign bare words to keys, quote the values of path keys, and let a resumed run keep its directory.

    Args:
        arguments: As typed, without the program and the verb.
        bare_words: Keys for words without '=', in order; 'runs...' takes all remaining words. For a key that takes a
            path, an existing file or folder with '=' in its name is a bare word, too.
        verb: Whose settings they are.

    Returns:
        Arguments for Hydra, flags first: its parser accepts none between settings.

    Raises:
        UserError: For mistakes that Hydra would answer with a traceback.
    """
    flags, settings = _separate(arguments)
    _check_known(flags, arguments, verb)
    flags = _with_home(flags)
    _check_flags(flags)
    settings = [with_recorded_spelling(setting) for setting in _with_keys(settings, bare_words)]
    sweep = "-m" in flags or "--multirun" in flags
    for setting in settings:
        _check_form(setting)
        _check_for_sweeps(setting, sweep)
    prepared = [quoted(_adding(renamed(setting)), sweep) for setting in _with_own_keys(settings)]
    typed = assigned(prepared)
    if "sweep.resume" in typed and typed["sweep.resume"] not in _NULL:
        if not sweep:
            raise UserError("sweep.resume= resumes a sweep: add -m, and the settings of that sweep.")
        prepared.append(f"hydra.sweep.dir={typed['sweep.resume']}")
    if resumed_directory(settings) and "hydra.run.dir" not in typed:
        prepared.append(f"hydra.run.dir={typed['resume']}")
    return [*flags, *prepared]


def _with_own_keys(settings: list[str]) -> list[str]:
    """Add `++` to the settings of a new logger or callback, `logger.NAME._target_=CLASS`, which conf/ does not have."""
    own = {key.removesuffix("_target_") for key in assigned(settings) if _OWN_CLASS.fullmatch(key)}
    return [f"++{s}" if parse(s).mark == "" and parse(s).key.startswith(tuple(own)) else s for s in settings]


# Files of conf/ under the names that they used to have: these still work.
RENAMED = {
    "experiment": {
        "readme000_keras": "keras_bn_cifar10",
        "readme000_pytorch": "alexnet_227_cifar10",
        "readme001": "lrn_folder",
        "readme002_keras": "valid_imagenet",
        "readme002_pytorch": "features_6400_imagenet",
        "readme003": "stride4_mnist",
        "readme004_alexnet": "two_fc_imagenet",
        "readme004_resnet18": "resnet18_imagenet",
    }
}


def renamed(setting: str) -> str:
    """Return a setting that chooses files of conf/ (`experiment=a,b` in a sweep) with their current names."""
    mark, key, value = parse(setting)
    if key not in RENAMED or value is None:
        return setting
    return f"{mark}{key}={','.join(RENAMED[key].get(name, name) for name in value.split(','))}"


def all_choices(settings: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, str]:
    """Return the config file of each group that a run was composed from.

    Older runs did not record them: their overrides are composed again, or taken as they are if a file is not in conf/.

    Args:
        settings: Of config.yaml.
        overrides: As typed.
    """
    if recorded := settings.get("choices"):
        return {group: str(name) for group, name in recorded.items()}
    return dict(
        _composed(tuple((o.key, o.text) for o in map(parse, map(renamed, overrides)) if o.key in GROUPS))
    )


@lru_cache(maxsize=1024)
def _composed(typed: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    try:
        config = compose("train", [f"{k}={v}" for k, v in typed], with_hydra=True)
        return tuple(chosen_files(config.hydra).items())
    except Exception:  # a custom file, or a name from another version
        return typed


def _adding(setting: str) -> str:
    """Mark a setting of `optimizer.layers` as one to add: its keys are the network's layers, which no file lists."""
    is_of_layers = setting.startswith(("optimizer.layers=", "optimizer.layers."))
    return f"++{setting}" if is_of_layers else setting


def resumed_directory(arguments: Sequence[str]) -> str | None:
    """Return the value of the last `resume=`, if it names a directory."""
    value = unquoted(assigned(arguments).get("resume", ""))
    return None if value in _NULL else os.path.expanduser(value)


def _with_home(flags: list[str]) -> list[str]:
    """Expand ~ in the values of folder flags: a shell leaves --config-dir=~/conf as it is."""
    expanded = list(flags)
    for i, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        if name in _FOLDER_FLAGS and equals:
            expanded[i] = f"{name}={os.path.expanduser(value)}"
        elif i and flags[i - 1] in _FOLDER_FLAGS:
            expanded[i] = os.path.expanduser(flag)
    return expanded


def _separate(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments into flags with their values, and settings."""
    flags: list[str] = []
    settings: list[str] = []
    after_flag = False
    for number, argument in enumerate(arguments):
        is_flag = argument.startswith("-") and argument != "-"  # "-" alone is standard input
        (flags if is_flag or after_flag else settings).append(argument)
        after_flag = is_flag and (argument in _FLAGS_WITH_VALUE or argument in ("-sc", "--shell-completion"))
        if argument in ("--info", "-i"):  # its value is optional: the next word may be a setting
            following = arguments[number + 1 : number + 2]
            after_flag = bool(following) and not following[0].startswith("-") and "=" not in following[0]
            flags += [] if after_flag else ["all"]
    return flags, settings


def _check_known(flags: list[str], arguments: list[str], verb: str) -> None:
    """Reject unknown flags: most often a setting in argparse style (`--lr 0.1`).

    Raises:
        UserError: Suggests the setting.
    """
    known = known_flags()
    wrong = next((w for w in flags if w.startswith("-") and w.partition("=")[0] not in known), None)
    if wrong is None:
        return
    name, equals, value = wrong.partition("=")
    after = arguments[arguments.index(wrong) + 1 :][:1]
    # A negative number is a value (`--devices -1`), another flag or setting is not.
    given = value if equals else after[0] if after and not re.match(r"-[-a-z]|.*=", after[0]) else None
    if verb in ("train", "benchmark", "reproduce"):
        meant = words.meant(name, given) or words.near(name)
    else:
        meant = words.meant_by_a_verb(name, given, list(compose(verb, [])))
    dashes = " Settings are KEY=VALUE, without dashes."
    hint = f"{dashes} Did you mean {' or '.join(meant)}?" if meant else nearest(name, known, 1) or dashes
    raise UserError(f"There is no flag {wrong}.{hint} --help lists the settings.")


def _check_flags(flags: list[str]) -> None:
    """Check the flags with Hydra's own parser, minus its usage page and exit code 2.

    Raises:
        UserError: If a value is missing or invalid.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}: see --help.")

    parser.error = refuse  # type: ignore[method-assign]
    if "--version" not in flags:  # argparse would print it and exit
        parser.parse_args(flags)


def _with_keys(settings: list[str], keys: tuple[str, ...]) -> list[str]:
    """Turn `models alexnet` into `models name=alexnet`."""
    named = assigned(settings)
    waiting = [key for key in keys if key.removesuffix("...") not in named]
    done: list[str] = []
    many: list[str] = []
    for setting in settings:
        bare = bool(waiting) and _is_bare(setting, waiting[0].removesuffix("..."))
        if bare and waiting[0].endswith("..."):
            many.append(quote(setting))
        else:
            done.append(f"{waiting.pop(0)}={setting}" if bare else setting)
    return [*done, f"{waiting[0].removesuffix('...')}=[{','.join(many)}]"] if many else done


def _is_bare(setting: str, key: str) -> bool:
    """Return whether a word is a value for `key`: it has no '=', or is an existing path and `key` takes one."""
    if "=" in setting or setting.startswith("~"):  # ~KEY deletes a setting, ~/DIR is a path
        return key in PATH_LISTS and (setting.startswith("~/") or os.path.exists(os.path.expanduser(setting)))
    return True


def _check_form(setting: str) -> None:
    _, group, value = parse(setting)
    if value is None:
        return
    # Here, too, since a sweep records its settings before any job checks them.
    check_tracker_setting(group, None if unquoted(value) in _NULL else value)
    if not group:
        raise UserError(f"{setting!r} has no key: write KEY=VALUE.")
    if group == "hydra/launcher" and unquoted(value) == "basic":
        raise UserError(
            f"{setting} has been removed: hydra.launcher.max_parallel=1 runs the jobs one at a time, each in its own "
            "process."
        )
    if group not in GROUPS or group == "hydra":
        return
    some = ", ".join(options(group)[:4])
    if value in ("", "null") or re.fullmatch(r"[-+.\d]+|true|false|\{.*", value):
        hint = f", or {group}=none" if "none" in options(group) else ""
        raise UserError(f"{setting} names no file in conf/{group}: set {group}=NAME, such as {some}{hint}.")
    if group in _SINGLE and value.startswith("["):
        names = value.strip("[]").replace(" ", "")
        raise UserError(f"{setting}: {group} takes one name; -m {group}={names} runs them one by one.")


def _check_for_sweeps(setting: str, sweep: bool) -> None:
    """Reject other spellings of a sweep: Hydra reads some too late and answers the rest with a traceback."""
    typed = parse(setting)
    key, value = typed.key, typed.value or ""
    params = "hydra.sweeper.params"
    if not sweep and key == "hydra.mode" and typed.text.upper().removeprefix("RUNMODE.") in ("MULTIRUN", "2"):
        raise UserError(f"{setting} has no effect: use -m.")
    if key.startswith(f"{params}."):
        raise UserError(f"{setting}: use -m {key.removeprefix(f'{params}.')}={value} instead.")
    if key == params and value != "null" and not value.startswith(("{", "$")):
        raise UserError(f"invalid {setting}: expected {{KEY: VALUES}}, such as {{seed: '0,1'}}.")


def quoted(setting: str, sweep: bool = False) -> str:
    """Quote the value of a path key for Hydra's grammar, and expand its ~.

    Args:
        setting: As typed: 'data.root=~/my images'.
        sweep: Whether commas separate values.
    """
    mark, name, value = parse(setting)
    if name not in (*LITERAL_KEYS, *PATH_LISTS) or value in (None, *_NULL, "???"):
        return setting
    key = f"{mark}{name}"
    is_path = name not in LITERAL_KEYS[len(PATH_KEYS) :]
    brackets = name in PATH_LISTS and value.startswith("[") and value.endswith("]")
    if brackets or (
        sweep and "," in value
    ):  # a list or choice: Hydra splits it, so quotes go around each value
        inner = value[1:-1] if brackets else value
        parts = [_at_home(part) for part in _split(inner)] if is_path else [inner]
        return f"{key}=[{','.join(parts)}]" if brackets else f"{key}={','.join(parts)}"
    if "${" in value:
        return setting
    if is_path and unquoted(value).startswith("~"):
        return f"{key}={_at_home(value)}"
    return setting if is_quoted(value) else f"{key}={quote(value)}"


def _at_home(value: str) -> str:
    """Expand ~ in a value, quoted or not."""
    bare = value.strip()
    path = unquoted(bare)
    return quote(os.path.expanduser(path)) if path.startswith("~") and "${" not in path else value


def _split(text: str) -> list[str]:
    """Split at commas outside quotes."""
    return re.findall(r"""(?:'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|[^,])+""", text)


def typed(setting: str) -> str:
    """Undo `quoted`: return a setting as a person would type it.

    A value that contains quotes or backslashes is returned unchanged.
    """
    key, _, value = setting.partition("=")
    plain = f"{key}={value[1:-1]}"
    return plain if quoted(plain) == setting else setting
