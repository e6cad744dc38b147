"""Errors about what a user typed, gave or has a machine for, each in one line that names the fix.

Hydra's and OmegaConf's frequent ones have a sentence of our own; whatever else such libraries raise keeps their words.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from alexnet_exp.config import words
from alexnet_exp.config.compose import conf_dir, options
from alexnet_exp.config.overrides import resumed_directory
from alexnet_exp.config.schema import RULES
from alexnet_exp.errors import (
    UserError,
    in_one_line,
    is_out_of_memory,
    library_of,
    nearest,
    of_the_machine,
    shell_command,
    unreadable,
)
from alexnet_exp.settings import GROUPS, parse


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
    if isinstance(error, UnicodeDecodeError) and _raised_in(error) in _READERS:
        # Hydra's reader of files knows which; the error does not say.
        files = [
            str(frame.f_locals["full_path"]) for frame in _frames(error) if "full_path" in frame.f_locals
        ]
        return (
            f"{files[-1] if files else 'A file of settings'} is not UTF-8 ({error.reason}): save it as UTF-8."
        )
    if is_out_of_memory(error):
        return _out_of_memory(error, verb)
    return of_the_machine(error) or _of_torch(error) or _of_a_library(error)


# Libraries whose own classes of errors are about their input, which is the user's: settings, files, accounts.
_JUDGES = (
    "hydra",
    "omegaconf",
    "antlr4",
    "yaml",
    "pydantic",
    "pydantic_core",
    "wandb",
    "PIL",
    "optuna",
    "sqlalchemy",
    "safetensors",
)
_READERS = (
    "hydra",
    "omegaconf",
    "antlr4",
    "yaml",
)  # whatever is raised in their code is about what was typed


def _of_a_library(error: BaseException) -> str | None:
    library = library_of(error)
    if library not in _JUDGES and type(error).__name__ != "MisconfigurationException":
        library = _raised_in(error)
        if library not in _READERS:
            return None
    name = {"pydantic_core": "pydantic", "PIL": "Pillow", "wandb": "W&B", "hydra": "Hydra"}.get(
        library, library
    )
    return _known(str(error)) or f"{name} refuses this: {_sentence(in_one_line(error))}"


def _raised_in(error: BaseException) -> str:
    """Return the package whose code raised an error, or called what raised it in the standard library."""
    names = [str(frame.f_globals.get("__name__", "")) for frame in _frames(error)]
    packages = [name.partition(".")[0] for name in names]
    return next((name for name in reversed(packages) if name not in sys.stdlib_module_names), "")


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


_TRAINING = (
    "set a smaller data.batch_size (trainer.accumulate_grad_batches=N keeps the images of a step), "
    "trainer.precision=bf16-mixed, a smaller model.input_size, or data.resident=off"
)
_ROOM = {  # what helps each verb
    "train": _TRAINING,
    "benchmark": f"{_TRAINING}; or step.batch_size=auto",
    "evaluate": "set a smaller batch_size, or precision=bf16-mixed",
    "predict": "set a smaller batch_size",
    "figures": "set a smaller batch_size or sample",
}


def _out_of_memory(error: BaseException, verb: str) -> str:
    said = in_one_line(error)
    amount = re.search(r"allocate ([\d.]+ ?(?:[KMGT]?i?B|bytes))", str(error))
    why = f"no room for {amount[1]} more" if amount else said[:120]
    main = isinstance(error, MemoryError | OSError) or "cpu" in said.lower() or "bad_alloc" in said
    where, others = (
        ("Main memory", "") if main else ("The GPU's memory", "; nvidia-smi shows what else is in it")
    )
    return f"{where} is full ({why}): {_ROOM.get(verb, 'close other programs, or use a larger machine')}{others}."


# What torch says of the machine, or of a setting, rather than of the code -> what helps.
_LITTLE_SHARED = "set data.num_workers=0, or give the container more shared memory (--shm-size=8g)."
_TORCH = {
    r"no kernel image is available": (
        "This build of torch has no code for this GPU: install another (pytorch.org), or set trainer=cpu."
    ),
    r"driver (?:version is insufficient|on your system is too old)": (
        "The GPU's driver is too old for this torch: update it, install an older torch, or set trainer=cpu."
    ),
    r"busy or unavailable": (
        "Another program holds the GPU: end it (nvidia-smi shows it), or choose another with trainer.devices=[N]."
    ),
    r"uncorrectable ECC|hardware error|fallen off the bus|device is lost": (
        "The GPU has failed: resume=RUN_DIR continues from the last checkpoint, on another GPU or after a restart."
    ),
    r"(\S+) does not have a deterministic implementation": (
        "trainer.deterministic=true: {0} has no deterministic version here; set trainer.deterministic=warn."
    ),
    r"CUBLAS_WORKSPACE_CONFIG": (
        "trainer.deterministic=true needs the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8."
    ),
    r"DataLoader worker .*(?:killed by signal|exited unexpectedly)": (
        f"A process that decodes images was killed, mostly for want of memory: {_LITTLE_SHARED}"
    ),
    r"unable to .*shared memory|</?torch_\d+": f"Shared memory is full: {_LITTLE_SHARED}",
    r"EADDRINUSE|address already in use": (
        "The port of the processes is taken: set the environment variable MASTER_PORT to another."
    ),
}


def _of_torch(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, RuntimeError):
        for pattern, message in _TORCH.items():
            if found := re.search(pattern, text, re.DOTALL):
                return message.format(*found.groups())
    module = type(error).__module__
    if module.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile has failed ({in_one_line(error)[:200]}): set compile=false."
    if type(error).__name__ in ("DistNetworkError", "DistStoreError", "DistBackendError"):
        return f"The processes of this run lost each other ({in_one_line(error)[:200]}): resume=RUN_DIR continues it."
    return None


def of_composing(error: Exception, arguments: Sequence[str]) -> Exception:
    """Return what to say of an error that Hydra has met by itself: making a run's directory, or reading settings.

    Args:
        error: Raised outside a run.
        arguments: As typed.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    if isinstance(error, OSError) and str(error.filename).endswith((".yaml", ".yml")):
        return unreadable(error.filename, error)  # a file of settings: no run is there yet
    if isinstance(error, OSError) and error.filename is not None:
        key = "hydra.sweep.dir" if sweep else "hydra.run.dir"
        other = "another resume=DIR" if resumed_directory(arguments) else f"{key}=DIR or paths.output_dir=DIR"
        return UserError(f"{error.filename} cannot be written ({error.strerror}); say {other}.")
    if explain(error) is not None or sweep:
        return error  # a sweep does much else than reading
    return UserError(f"Hydra cannot read {shell_command(arguments)}: {in_one_line(error)[:200]}")


# What Hydra and OmegaConf say -> what the user is told; the groups of the pattern are the arguments.
_PATTERNS: list[tuple[str, Callable[..., str]]] = [
    (r"Cannot find primary config '([^']+)'", lambda name: f"There is no file {name}.yaml in conf/."),
    (
        r"Only one of --run, --multirun, --cfg, --info",
        lambda: "--cfg and --info show the settings of one run: leave -m out, and give each key one value.",
    ),
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
        lambda value, kind, key: f"invalid {key}={value!r}: expected {_kind(kind)}.",
    ),
    (
        r"Value '([^']*)' is not a valid bool.*?full_key: (\S+)",
        lambda value, key: f"invalid {key}={value!r}: expected true or false.",
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
        lambda key, value: f"invalid {key}={value}: expected a list, '{key}=[{value}]'.",
    ),
    (
        r"Error merging override ([^=\s]+)=(.*?)\s+Invalid type assigned: \w+ is not a subclass of (\w+)",
        lambda key, value, _: f"invalid {key}={value}: it is a group of settings, set as {key}.KEY=VALUE.",
    ),
    (
        r"Error merging override ([^=\s]+)=(.*?)\s+field '[^']+' is not Optional",
        lambda key, _: f"invalid {key}=null: it needs a value.",
    ),
]


def _readable(error: BaseException, verb: str) -> str:
    text = f"{error}\n{error.__cause__}" if error.__cause__ is not None else str(error)
    if found := re.search(r"Could not (?:find|load) '(.+)/([^'/]*)'", text):
        return _unknown_option(found[1], found[2], getattr(error, "options", None) or options(found[1]))
    if said := _known(text):
        return said
    if found := re.search(r"Could not override '([^']+)'", text):
        typed = re.search(rf"use \+{re.escape(found[1])}=(.*)", text)
        return _unknown_key(found[1], verb, typed[1] if typed else None)
    if found := re.search(
        r"Key '[^']+' (?:not in '\w+'|is not in struct).*?full_key: (\S+)", text, re.DOTALL
    ):
        file = re.match(r"In '([^']+)'", text)
        return (f"{file[1]}.yaml: " if file else "") + _unknown_key(found[1], verb)
    return " ".join([line.strip() for line in text.splitlines() if line.strip()][:3])


def _known(text: str) -> str | None:
    """Return our sentence for what Hydra or OmegaConf says, if there is one."""
    for pattern, message in _PATTERNS:
        if found := re.search(pattern, text, re.DOTALL):
            return message(*found.groups())
    return None


def _kind(name: str) -> str:
    kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
    return kinds.get(name, f"a value of type {name.lower()}")


def _unreadable(error: OverrideParseException) -> str:
    mark, key, value = parse(error.override)
    if value is None:
        return _without_value(f"{mark}{key}")
    return (
        f"{error.override} cannot be read: close every bracket and quotation mark, and put a text with "
        f"special characters into two kinds of quotation marks: '{mark}{key}=\"...\"'."
    )


def _without_value(word: str) -> str:
    """Return the sentence about a word alone: the name of an option, a setting without its value, or `lr:0.1`."""
    key, _, value = word.partition(":")
    close = [f"{group}={word}" for group in GROUPS if word in options(group)]
    if not close and (conf_dir() / f"{word}.yaml").exists() and word != "train":
        return f"{word!r} is no setting: the command is alexnet-exp {word}."
    if not close and len(key) > 1:
        close = [
            each if "=" in each else f"{each}=VALUE" for each in words.meant(key, value.strip() or "VALUE")
        ]
    if close and key not in RULES:
        return f"{word!r} is no setting with a value. Did you mean {' or '.join(close)}?"
    return f"{word!r} is no setting with a value. Write {key}={value.strip() or 'VALUE'}."


def _unknown_option(group: str, option: str, known: Sequence[str]) -> str:
    known = [each for each in known if not each.startswith("__")]  # the recorded settings of a resumed run
    close = nearest(option, known) or nearest(option.lower(), known)
    if not close and group in GROUPS:
        meant = [each for each in words.meant(group, option) if not each.endswith("=NAME")]
        close = f" Did you mean {' or '.join(meant)}?" if meant else ""
    listed = f" It has {', '.join(known)}." if known and (not close or len(known) <= 8) else ""
    return f"{group}={option}: conf/{group} has no file {option}.yaml.{close}{listed}"


def _unknown_key(key: str, verb: str, value: str | None = None) -> str:
    from alexnet_exp.config import checks

    if key == "hydra.sweeper.params":  # there is, and what was typed adds to it
        return "The chosen sweep has its own hydra.sweeper.params: type others as KEY=VALUES beside it."
    if key.startswith("hydra."):
        return f"There is no setting {key}. alexnet-exp {verb} --cfg hydra lists all."
    if verb == "train":
        return checks.unknown(key, value)
    from alexnet_exp.config.compose import compose

    known = [str(known) for known in compose(verb, [])]
    meant = words.meant(key, value) if verb == "benchmark" else words.meant_by_a_verb(key, value, known)
    close = f" Did you mean {' or '.join(meant)}?" if meant else nearest(key, known)
    return f"There is no setting {key}.{close} alexnet-exp {verb} has {', '.join(known)}."
