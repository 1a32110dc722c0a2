"""A few words to say what JSON must look like, and to name what is wrong with it as OpenAI does.

A shape first *accepts* a value by its JSON type alone, which is how alternatives are told apart;
only then does it look inside. Codes and messages follow OpenAI's API. A submitted value is repeated
only where OpenAI repeats it, and cut short.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LONGEST_SHOWN = 64  # characters of a submitted value in a message


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Args:
        param: Where, dotted: ``session.audio.output.speed``, ``session.tools[0].name``.
        code: OpenAI's code, such as ``unknown_parameter``.
        message: A sentence or two, worded as OpenAI words it.
    """

    param: str
    code: str
    message: str


def _no_faults(_value: object, _at: str) -> Iterable[Fault]:
    return ()


@dataclass(frozen=True, slots=True)
class Shape:
    """What a JSON value may look like.

    Args:
        expects: What is wanted, with its article, for messages: ``a string``.
        accepts: Tells whether a value has the JSON type wanted.
        inside: Gives what is wrong with an accepted value that stands at a param.
    """

    expects: str
    accepts: Callable[[object], bool]
    inside: Callable[[Any, str], Iterable[Fault]] = _no_faults

    def faults(self, value: object, at: str) -> Iterator[Fault]:
        """Give everything that is wrong with *value*, which stands at *at*."""
        if self.accepts(value):
            yield from self.inside(value, at)
        else:
            message = f"expected {self.expects}, but got {_json_type(value)} instead."
            yield Fault(at, "invalid_type", f"Invalid type for '{at}': {message}")


def text(*, pattern: str = "", meaning: str = "", longest: int | None = None) -> Shape:
    """A string of at most *longest* characters that matches *pattern*, in words *meaning*."""

    def inside(value: str, at: str) -> Iterator[Fault]:
        if longest is not None and len(value) > longest:
            yield Fault(
                at,
                "string_above_max_length",
                f"Invalid '{at}': string too long. Expected a string with maximum length"
                f" {longest}, but got a string with length {len(value)} instead.",
            )
        elif pattern and not re.fullmatch(pattern, value):
            yield invalid_value(at, f"Invalid '{at}': expected {meaning}.")

    return Shape("a string", lambda value: isinstance(value, str), inside)


def one_of(*options: str) -> Shape:
    """One of a few strings."""

    def inside(value: str, at: str) -> Iterator[Fault]:
        if value not in options:
            yield unsupported_value(at, value, options)

    return Shape("a string", lambda value: isinstance(value, str), inside)


def integer(least: int | None = None, most: int | None = None) -> Shape:
    """A whole number from *least* to *most*, both included; None leaves a side open."""
    return Shape("an integer", _is_integer, _within("integer", least, most))


def number(least: float, most: float | None = None) -> Shape:
    """A number from *least* to *most*, both included; None leaves it open."""
    return Shape("a number", _is_number, _within("decimal", least, most))


def array(of: Shape, *, least: int = 0) -> Shape:
    """A list of at least *least* such members."""

    def inside(value: Sequence[object], at: str) -> Iterator[Fault]:
        if len(value) < least:
            yield Fault(
                at,
                "empty_array",
                f"Invalid '{at}': empty array. Expected an array with minimum length {least},"
                " but got an empty array instead.",
            )
        for index, member in enumerate(value):
            yield from of.faults(member, f"{at}[{index}]")

    return Shape("an array", lambda value: isinstance(value, list | tuple), inside)


def record(members: Mapping[str, Shape], *, required: Sequence[str] = ()) -> Shape:
    """An object with these members and no others."""

    def inside(value: Mapping[str, object], at: str) -> Iterator[Fault]:
        for name in required:
            if name not in value:
                yield missing_parameter(_join(at, name))
        for name, member in value.items():
            if name in members:
                yield from members[name].faults(member, _join(at, name))
            else:
                yield unknown_parameter(_join(at, shown(name)))

    return Shape("an object", _is_object, inside)


def variants(kinds: Mapping[str, Shape], *, told_by: str = "type") -> Shape:
    """An object whose member *told_by* says which of *kinds* it is."""
    naming = one_of(*kinds)

    def inside(value: Mapping[str, object], at: str) -> Iterator[Fault]:
        if told_by not in value:
            yield missing_parameter(_join(at, told_by))
            return
        unnamed = list(naming.faults(value[told_by], _join(at, told_by)))
        yield from unnamed or kinds[str(value[told_by])].inside(value, at)

    return Shape("an object", _is_object, inside)


def mapping(of: Shape, *, most: int | None = None) -> Shape:
    """An object with at most *most* members of any name, each such."""

    def inside(value: Mapping[str, object], at: str) -> Iterator[Fault]:
        if most is not None and len(value) > most:
            yield Fault(
                at,
                "object_above_max_properties",
                f"Invalid '{at}': too many properties. Expected an object with at most {most}"
                f" properties, but got an object with {len(value)} properties instead.",
            )
        for name, member in value.items():
            yield from of.faults(member, _join(at, shown(name)))

    return Shape("an object", _is_object, inside)


def either(*alternatives: Shape) -> Shape:
    """The first of *alternatives* that accepts the value; their JSON types differ."""

    def inside(value: object, at: str) -> Iterable[Fault]:
        fitting = next(shape for shape in alternatives if shape.accepts(value))
        return fitting.inside(value, at)

    return Shape(
        " or ".join(shape.expects for shape in alternatives),
        lambda value: any(shape.accepts(value) for shape in alternatives),
        inside,
    )


def unknown_parameter(param: str) -> Fault:
    """Return the fault of a member that does not exist."""
    return Fault(param, "unknown_parameter", f"Unknown parameter: '{param}'.")


def missing_parameter(param: str) -> Fault:
    """Return the fault of a member that has to be there and is not."""
    return Fault(param, "missing_required_parameter", f"Missing required parameter: '{param}'.")


def invalid_value(param: str, message: str) -> Fault:
    """Return the fault of a value that has the right type and is still not possible."""
    return Fault(param, "invalid_value", message)


def unsupported_value(param: str, value: str, supported: Sequence[str]) -> Fault:
    """Return the fault of a *value* that is none of *supported*."""
    *others, last = (f"'{option}'" for option in supported)
    comma = "," if len(others) > 1 else ""
    listed = f"{', '.join(others)}{comma} and {last}" if others else last
    return invalid_value(param, f"Invalid value: '{shown(value)}'. Supported values are: {listed}.")


def shown(value: object) -> str:
    """Return *value* as it may stand in a message: at most 64 characters of it."""
    whole = str(value)
    return whole if len(whole) <= _LONGEST_SHOWN else f"{whole[:_LONGEST_SHOWN]}…"


def _within(
    kind: str, least: float | None, most: float | None
) -> Callable[[float, str], Iterator[Fault]]:
    def inside(value: float, at: str) -> Iterator[Fault]:
        if least is not None and value < least:
            yield fault(at, value, "below minimum", f">= {least}")
        elif most is not None and value > most:
            yield fault(at, value, "above maximum", f"<= {most}")

    def fault(at: str, value: float, side: str, bound: str) -> Fault:
        return Fault(
            at,
            f"{kind}_{side[:9].replace(' ', '_')}_value",
            f"Invalid '{at}': {kind} {side} value. Expected a value {bound},"
            f" but got {shown(value)} instead.",
        )

    return inside


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name  # the members of an event stand under no name


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    # TOML knows nan and inf, JSON does not.
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _json_type(value: object) -> str:
    if _is_object(value):
        return "an object"
    return _JSON_TYPES.get(type(value), "something that is not JSON")  # such as a date of TOML


_JSON_TYPES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    tuple: "an array",
}

NULL = Shape("null", lambda value: value is None)
FLAG = Shape("a boolean", lambda value: isinstance(value, bool))
TEXT = text()
OBJECT = Shape("an object", _is_object)
"""An object we do not look into, such as a JSON Schema."""
