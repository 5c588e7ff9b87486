"""One YAML file and the command line become dataclasses: every key known, every value of its type, or refused."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union

from transformers import HfArgumentParser

from geomae.command_line import advise
from geomae.documents import DocumentError, DuplicateKeyError, parse_json, parse_yaml, read_text
from geomae.errors import ConfigError

__all__ = ["Variants", "given_keys", "option", "parse_config"]

COMMAND_LINE = "the command line"
_LONGEST_SHOWN = 200  # letters of a value in a message
TEXT_OR_SWITCH = ("resume_from_checkpoint",)  # a path, or true; argparse knows no such type, so it is text to us


@dataclasses.dataclass(frozen=True)
class Variants:
    """Dataclasses of which one is used: the one named by the value of `key`, which another dataclass holds."""

    key: str
    choices: Mapping[str, type]


def option(default: Any, explanation: str) -> Any:
    """A dataclass field with the text that `--help` shows; lists and dicts are copied for each instance."""
    metadata = {"help": explanation}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse_config(dataclass_types: Sequence[type | Variants], argv: Sequence[str]) -> tuple[Any, ...]:
    """Read `CONFIG.yaml [--key value ...]` into dataclasses; the command line wins over the file.

    Args:
        dataclass_types: `HfArgumentParser` dataclasses, or `Variants` of them. A class attribute
            `exclusive_keys` (pairs) names keys of which only one may be set.
        argv: the arguments after the script's name; `--help` lists every key and leaves.

    Returns:
        One instance for each entry of `dataclass_types`, in the same order.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, doubled or in conflict, a value has the wrong type,
            or a dataclass refuses the combination; the message names the key and the file.
    """
    if "--help" in argv or "-h" in argv:
        _print_help(dataclass_types)
    path, from_file, overrides = _read(argv)
    classes = _choose_variants(dataclass_types, {**from_file, **overrides}, path)
    hints = _type_hints(classes)
    from_file = _check(from_file, hints, source=path)
    overrides = _check(overrides, hints, source=COMMAND_LINE)
    from_file = _settle_exclusive_keys(classes, from_file, overrides, path)
    try:
        return HfArgumentParser(classes).parse_dict({**from_file, **overrides})  # type: ignore[arg-type]  # it takes a tuple too
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path or COMMAND_LINE}: {error}") from error


def given_keys(argv: Sequence[str]) -> set[str]:
    """The keys that the file or the command line sets, as against those left at their default."""
    _, from_file, overrides = _read(argv)
    return {*from_file, *overrides}


def _print_help(dataclass_types: Sequence[type | Variants]) -> typing.NoReturn:
    classes: list[type] = []
    for entry in dataclass_types:
        for candidate in entry.choices.values() if isinstance(entry, Variants) else [entry]:
            classes.append(candidate)
    usage = "%(prog)s CONFIG.yaml [--key value ...]"
    parser = HfArgumentParser(classes, usage=usage, conflict_handler="resolve")  # type: ignore[arg-type]  # it takes a tuple too
    parser.print_help()
    raise SystemExit(0)


def _read(argv: Sequence[str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The file's path ("" without one), its keys, and the keys of the command line with their words as a list."""
    path = argv[0] if argv and not argv[0].startswith("--") else ""
    return path, _load_yaml(path) if path else {}, _split_words(argv[1:] if path else argv)


def _load_yaml(path: str) -> dict[str, Any]:
    try:
        content = parse_yaml(read_text(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; the first argument is the YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8; the first argument is the YAML file") from error
    except DuplicateKeyError as error:
        raise ConfigError(f"{path}: {error}") from error
    except DocumentError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path} must hold lines `key: value` at its top level, not a {type(content).__name__}")
    return content


def _split_words(words: Sequence[str]) -> dict[str, list[str]]:
    """`--key value ...`, `--key=value`, `--flag` and `--no_flag` as key -> list of words."""
    overrides: dict[str, list[str]] = {}
    key = None
    for word in words:
        if not word.startswith("--"):
            if key is None:
                raise ConfigError(f"{word!r} on {COMMAND_LINE} belongs to no key; write CONFIG.yaml --key value")
            overrides[key].append(word)
            continue
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if key in overrides:
            raise ConfigError(f"--{key} stands twice on {COMMAND_LINE}; keep one of them")
        overrides[key] = [value] if equals else []
    return overrides


def _choose_variants(dataclass_types: Sequence[type | Variants], given: Mapping[str, Any], path: str) -> list[type]:
    """Replace each `Variants` by the class that the given keys, or the default of the choosing key, name."""
    plain = [entry for entry in dataclass_types if not isinstance(entry, Variants)]
    defaults = {field.name: field.default for entry in plain for field in dataclasses.fields(entry)}
    classes = []
    for entry in dataclass_types:
        if isinstance(entry, Variants):
            value = given.get(entry.key, defaults[entry.key])
            value = value[0] if isinstance(value, list) and value else value
            if value not in entry.choices:
                raise ConfigError(f"{entry.key} in {path} is {value!r}; it must be one of {', '.join(entry.choices)}")
            entry = entry.choices[value]
        classes.append(entry)
    return classes


def _type_hints(classes: Sequence[type]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for dataclass_type in classes:
        resolved = typing.get_type_hints(dataclass_type)
        for field in dataclasses.fields(dataclass_type):
            if field.init:
                assert field.name not in hints, f"{field.name} is a field of two dataclasses"
                hints[field.name] = resolved[field.name]
    return hints


def _check(given: Mapping[str, Any], hints: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Refuse unknown keys and bring every value to the type of its field."""
    from_words = source == COMMAND_LINE
    if from_words:
        given = _resolve_negations(given, hints)
    unknown = [key for key in given if key not in hints]
    if unknown:
        raise ConfigError("\n".join(_describe_unknown(key, hints, source) for key in unknown))
    if from_words:
        return {key: _value_of_words(words, hints[key], key) for key, words in given.items()}
    return {key: _coerce(value, hints[key], key, source) for key, value in given.items()}


def _resolve_negations(given: Mapping[str, list[str]], hints: Mapping[str, Any]) -> dict[str, list[str]]:
    """`--no_flag`, without a value, is `--flag false`."""
    resolved = dict(given)
    for key, words in given.items():
        if key not in hints and key.startswith("no_") and bool in _members(hints.get(key[3:])) and not words:
            del resolved[key]
            resolved[key[3:]] = ["false"]
    return resolved


def _describe_unknown(key: str, hints: Mapping[str, Any], source: str) -> str:
    dashes = "--" if source == COMMAND_LINE else ""
    return f"unknown key {dashes}{key} {'on' if dashes else 'in'} {source}; {advise(key, list(hints), dashes=dashes)}"


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _value_of_words(words: list[str], hint: Any, key: str) -> Any:
    """The value of `--key WORDS`: text stays text, everything else is read as YAML would read it."""
    members = _members(hint)
    if len(words) == 1 and words[0] in ("null", "none", "None") and type(None) in members and key != "report_to":
        return None
    if not words:
        if bool not in members:
            raise ConfigError(f"--{key} on {COMMAND_LINE} has no value; write --{key} VALUE")
        return True
    wants_list = any(typing.get_origin(member) is list or member is list for member in members)
    # Of a list of texts every word is text: the folder 2024 is no number.
    is_text = list[str] in members or (str in members and not (wants_list and len(words) > 1))
    if is_text and not words[0].startswith(("{", "[")):
        value: Any = words if len(words) > 1 else words[0]
    else:
        values = [_load_word(word, key) for word in words]
        value = values if len(values) > 1 else values[0]
    return _coerce(value, hint, key, COMMAND_LINE)


def _load_word(word: str, key: str) -> Any:
    try:
        return parse_yaml(word)
    except DocumentError as error:
        raise ConfigError(f"--{key} on {COMMAND_LINE} is {_shown(word)}, which is no value: {error}") from error


def _coerce(value: Any, hint: Any, key: str, source: str) -> Any:
    """`value` as the type `hint`, or `ConfigError`; numbers written `1e-4` are text to YAML and numbers to us."""
    members = _members(hint)
    if value is None and type(None) in members:
        return None
    if key in TEXT_OR_SWITCH and isinstance(value, bool):
        return str(value).lower()
    is_strategy = any(isinstance(member, type) and issubclass(member, Enum) for member in members)
    if value is False and is_strategy:
        return "no"  # YAML 1.1 reads `eval_strategy: no` as a boolean
    for member in members:
        if type(value) is member:
            return value
    for member in members:
        try:
            return _convert(value, member, key, source)
        except (TypeError, ValueError, OverflowError):  # int(inf) overflows
            continue
    raise ConfigError(
        f"{key} {'on' if source == COMMAND_LINE else 'in'} {source} is {_shown(value)} ({type(value).__name__}); "
        f"it must be {_describe(hint)}"
    )


def _convert(value: Any, member: Any, key: str, source: str) -> Any:
    """`value` as one member of a union; raises ValueError or TypeError where it cannot be that."""
    origin = typing.get_origin(member)
    if origin is Literal:
        return typing.get_args(member)[typing.get_args(member).index(value)]
    if member is list or origin is list:
        items = value if isinstance(value, list) else [value]
        arguments = typing.get_args(member)
        return [_coerce(item, arguments[0], key, source) for item in items] if arguments else items
    if member is dict or origin is dict:
        loaded = parse_json(value) if isinstance(value, str) else value
        return dict(loaded) if isinstance(loaded, Mapping) else _refuse()
    if isinstance(value, bool) or value is None:
        return value if member is bool or (value is None and member is type(None)) else _refuse()
    if member is float:
        return float(value) if isinstance(value, (int, float, str)) else _refuse()
    if member is int:
        number = float(value) if isinstance(value, (float, str)) else value
        return int(number) if isinstance(number, (int, float)) and number == int(number) else _refuse()
    if member is str or (isinstance(member, type) and issubclass(member, Enum)):
        return value if isinstance(value, str) else _refuse()
    return value if isinstance(member, type) and isinstance(value, member) else _refuse()


def _shown(value: Any) -> str:
    """As Python spells it, cut off where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _refuse() -> typing.NoReturn:
    raise TypeError


def _describe(hint: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text (quote it)", dict: "a mapping"}
    described = []
    for member in _members(hint):
        origin = typing.get_origin(member) or member
        if member is type(None):
            described.append("null")
        elif origin is Literal:
            described += [repr(choice) for choice in typing.get_args(member)]
        elif origin is list:
            arguments = typing.get_args(member)
            described.append(f"a list of {_describe(arguments[0])}" if arguments else "a list")
        else:
            described.append(words.get(origin, getattr(origin, "__name__", str(origin))))
    return " or ".join(described)


def _settle_exclusive_keys(
    classes: Sequence[type], from_file: dict[str, Any], overrides: Mapping[str, Any], path: str
) -> dict[str, Any]:
    """Of two keys that exclude each other, the command line's wins over the file's; both in one place are refused."""
    settled = dict(from_file)
    for first, second in (pair for entry in classes for pair in getattr(entry, "exclusive_keys", ())):
        for keys, source in ((from_file, path), (overrides, COMMAND_LINE)):
            if keys.get(first) is not None and keys.get(second) is not None:
                raise ConfigError(f"{source} sets both {first} and {second}; keep one of them")
        for winner, loser in ((first, second), (second, first)):
            if overrides.get(winner) is not None:
                settled.pop(loser, None)
    return settled
