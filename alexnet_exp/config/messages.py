"""Errors of Hydra, OmegaConf and YAML, said in one line with the nearest right names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from alexnet_exp.config.command_line import GROUPS, resumed_directory
from alexnet_exp.config.compose import options
from alexnet_exp.errors import UserError, nearest


def explain(error: BaseException, verb: str = "train") -> str | None:
    """Return one line that tells the user what to mend, or None for an error that is not theirs.

    Args:
        error: Whatever was raised while composing or running.
        verb: Whose settings were being composed.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given: say {error.full_key}=VALUE."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _readable(error, verb)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}, is not YAML: {error.problem}."
    return None


def of_composing(error: Exception, arguments: Sequence[str]) -> Exception:
    """Return what to say of an error that Hydra has met by itself: making a run's directory, or reading settings.

    Args:
        error: Raised outside a run.
        arguments: As typed.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    if isinstance(error, OSError) and error.filename is not None:
        key = "hydra.sweep.dir" if sweep else "hydra.run.dir"
        other = "another resume=DIR" if resumed_directory(arguments) else f"{key}=DIR or paths.output_dir=DIR"
        return UserError(f"{error.filename} cannot be written ({error.strerror}); say {other}.")
    if explain(error) is not None or sweep:
        return error  # a sweep does much else than reading
    reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return UserError(f"Hydra cannot read {shlex.join(arguments)}: {reason}")


# What Hydra and OmegaConf say -> what the user is told; the groups of the pattern are the arguments.
_PATTERNS: list[tuple[str, Callable[..., str]]] = [
    (r"Cannot find primary config '([^']+)'", lambda name: f"There is no file {name}.yaml in conf/."),
    (
        r"Additional config directory '(.+)' not found",
        lambda path: f"There is no folder {path} for --config-dir.",
    ),
    (
        r"Ambiguous value for argument '([^=]+)=([^']*)'",
        lambda key, value: (
            f"{key}={value} is several values: -m {key}={value} runs one after the other, "
            f"'{key}=[{value}]' is a list, and '{key}=\"{value}\"' one text."
        ),
    ),
    (
        r"Multiple values for ([\w/]+)\.",
        lambda group: f"{group} is given twice, or has a + that it does not need: say {group}=NAME, once.",
    ),
    (
        r"Could not append to config\. An item is already at '([^']+)'",
        lambda key: f"+{key}: there is such a setting already; leave the + away.",
    ),
    (
        r"Could not delete from config\. '([^']+)'",
        lambda key: f"~{key}: there is no such setting to take away.",
    ),
    (
        r"Environment variable '([^']+)' not found.*?full_key: (\S+)",
        lambda variable, key: f"{key}: the environment variable {variable} is not set.",
    ),
    (
        r"resolving interpolation: Index '(\w+)' \(str\) is not an int.*?full_key: (\S+)",
        lambda wanted, key: (
            f"{key} needs {wanted} of a file that is a list: a file of settings has lines such as {wanted}: VALUE."
        ),
    ),
    (
        r"Unsupported interpolation type (\w+).*?full_key: (\S+)",
        lambda kind, key: (
            f"{key}: ${{{kind}:...}} means nothing here; there are ${{KEY}} and ${{oc.env:VARIABLE,VALUE}}."
        ),
    ),
    (
        r"Interpolation key '([^']+)' not found.*?full_key: (\S+)",
        lambda wanted, key: f"{key}=${{{wanted}}}: there is no setting {wanted} to take the value from.",
    ),
    (
        r"Value '([^']*)'.*? could not be converted to (\w+).*?full_key: (\S+)",
        lambda value, kind, key: f"{key}={value!r} is not possible: it must be {_kind(kind)}.",
    ),
    (
        r"Value '([^']*)' is not a valid bool.*?full_key: (\S+)",
        lambda value, key: f"{key}={value!r} is not possible: it must be true or false.",
    ),
    (
        r"Error merging override \+{1,2}model\.(features|classifier)\.([^.=\s]+).*?"
        r"Invalid type assigned: dict is not a subclass",
        lambda part, name: (
            f"+model.{part}.{name}: a new layer needs a yaml of its own that starts from the network: "
            f"my_conf/model/mine.yaml with 'defaults: [NETWORK, _self_]' and '{part}: {{{name}: {{KEY: VALUE}}}}', "
            "then --config-dir my_conf model=mine."
        ),
    ),
    (
        r"Error merging override ([^=\s]+)=(.*?)\s+Invalid value assigned: \w+ is not a ListConfig",
        lambda key, value: f"{key}={value} is not possible: it must be a list; say '{key}=[{value}]'.",
    ),
    (
        r"Error merging override ([^=\s]+)=(.*?)\s+Invalid type assigned: \w+ is not a subclass of (\w+)",
        lambda key, value, _: (
            f"{key}={value} is not possible: it has settings of its own, such as {key}.KEY=VALUE."
        ),
    ),
    (
        r"Error merging override ([^=\s]+)=(.*?)\s+field '[^']+' is not Optional",
        lambda key, _: f"{key}=null is not possible: it needs a value.",
    ),
]


def _readable(error: BaseException, verb: str) -> str:
    text = f"{error}\n{error.__cause__}" if error.__cause__ is not None else str(error)
    if found := re.search(r"Could not (?:find|load) '(.+)/([^'/]*)'", text):
        return _unknown_option(found[1], found[2], getattr(error, "options", None) or options(found[1]))
    for pattern, message in _PATTERNS:
        if found := re.search(pattern, text, re.DOTALL):
            return message(*found.groups())
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], verb)
    if found := re.search(
        r"Key '[^']+' (?:not in '\w+'|is not in struct).*?full_key: (\S+)", text, re.DOTALL
    ):
        file = re.match(r"In '([^']+)'", text)
        return (f"{file[1]}.yaml: " if file else "") + _unknown_key(found[1], verb)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])


def _kind(name: str) -> str:
    kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
    return kinds.get(name, f"a value of type {name.lower()}")


def _unreadable(error: OverrideParseException) -> str:
    key, equals, _ = error.override.partition("=")
    if not equals:
        homes = [f"{group}={key}" for group in GROUPS if key in options(group)]
        meant = f" Did you mean {', '.join(homes)}?" if homes else f" Write {key}=VALUE."
        return f"{key!r} is no setting with a value.{meant}"
    return (
        f"{error.override} cannot be read: close every bracket and quotation mark, and put a text with "
        f"special characters into two kinds of quotation marks: '{key}=\"...\"'."
    )


def _unknown_option(group: str, option: str, known: Sequence[str]) -> str:
    close = nearest(option, known)
    listed = f" It has {', '.join(known)}." if known and (not close or len(known) <= 8) else ""
    return f"{group}={option}: conf/{group} has no file {option}.yaml.{close}{listed}"


def _unknown_key(key: str, verb: str) -> str:
    from alexnet_exp.config import checks

    if key == "hydra.sweeper.params":  # there is, and what was typed adds to it
        return "The chosen sweep has its own hydra.sweeper.params: type others as KEY=VALUES beside it."
    if key.startswith("hydra."):
        return f"There is no setting {key}. alexnet-exp {verb} --cfg hydra lists all."
    if verb == "train":
        return checks.unknown(key)
    from alexnet_exp.config.compose import compose

    known = [str(known) for known in compose(verb, [])]
    return f"There is no setting {key}.{nearest(key, known)} alexnet-exp {verb} has {', '.join(known)}."
