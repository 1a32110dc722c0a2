"""Arguments for a function, made up so that they fit its JSON Schema.

What is understood is what tools are described with: types, enumerations, bounds, nested objects and
arrays, formats, references and alternatives. A ``pattern`` is met by a ``default`` or an example
only. Nobody has checked the schema, so whatever makes no sense in it is passed over.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

MOST_CHARACTERS = 100_000  # of all arguments together; what comes after is null
_DEEPEST = 20  # levels; a schema may ask for itself without end
_MOST_BOUND = 1e15  # up to here floats count every integer

_Schema: TypeAlias = Mapping[str, Any]

_TEXT = "sandbox"
_FORMATS = {
    "date": "2026-11-20",
    "date-time": "2026-11-20T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1M",
    "email": "sandbox@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def arguments_for(parameters: object) -> dict[str, Any]:
    """Return arguments that fit *parameters*, a JSON Schema: always the same for the same schema.

    Given are all properties of the arguments themselves; of objects inside, the required ones.
    """
    schema = parameters if isinstance(parameters, Mapping) else {}
    made = _Maker(schema).make(schema, depth=0)
    return made if isinstance(made, dict) else {}


class _Maker:
    """Makes values until it has written enough, so that no schema can make it write for ever."""

    def __init__(self, root: _Schema) -> None:
        self._root = root
        self._left = MOST_CHARACTERS

    def make(self, schema: object, *, depth: int) -> Any:
        """Return a value that fits *schema*, or None when enough was written, or too deep."""
        if not isinstance(schema, Mapping) or depth > _DEEPEST or not self._may_write(1):
            return None
        schema = self._flat(schema)
        made: Any = None
        match _type_of(schema):
            case "given":
                made = _given_values(schema)[0]
            case "object":
                return self._object(schema, depth=depth)
            case "array":
                return self._array(schema, depth=depth)
            case "string":
                made = _string(schema)
            case "integer":
                made = _number(schema, step=1)
            case "number":
                made = _number(schema, step=None)
            case "boolean":
                made = False
        return made if self._may_write(len(json.dumps(made))) else None

    def _may_write(self, characters: int) -> bool:
        self._left -= characters
        return self._left >= 0

    def _object(self, schema: _Schema, *, depth: int) -> dict[str, Any]:
        properties = _mapping(schema.get("properties"))
        required = [name for name in _list(schema.get("required")) if isinstance(name, str)]
        names = dict.fromkeys([*(() if depth else properties), *required])
        made = {}
        for name in names:
            if not self._may_write(len(name)):
                break
            made[name] = self.make(properties.get(name, {}), depth=depth + 1)
        return made

    def _array(self, schema: _Schema, *, depth: int) -> list[Any]:
        first = _list(schema.get("prefixItems"))
        rest = schema.get("items", {})
        made = []
        for index in range(int(_bound(schema, "minItems") or 0)):
            if self._left < 0:
                break
            item = first[index] if index < len(first) else rest
            made.append(self.make(item, depth=depth + 1))
        return made

    def _flat(self, schema: _Schema) -> _Schema:
        """Return *schema* with what it refers to and is put together from, in one level.

        Of alternatives the first is taken.
        """
        flat: dict[str, Any] = {}
        properties: dict[str, Any] = {}
        required: list[Any] = []
        waiting: list[object] = [schema]
        while waiting:
            part = waiting.pop()
            # Looking costs as much as writing: a reference may lead to itself, or to much.
            if not isinstance(part, Mapping) or not self._may_write(1 + len(part)):
                continue
            flat.update(part)
            properties.update(_mapping(part.get("properties")))
            required += _list(part.get("required"))
            waiting += _list(part.get("allOf"))
            waiting += _list(part.get("anyOf"))[:1] + _list(part.get("oneOf"))[:1]
            waiting.append(self._referred(part.get("$ref")))
            self._may_write(len(properties) + len(required))
        return flat | {"properties": properties, "required": required}

    def _referred(self, reference: object) -> object:
        """Return what a reference within the document, such as ``#/$defs/city``, leads to."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        place: object = self._root
        for name in reference.removeprefix("#").split("/")[1:]:
            place = _mapping(place).get(name.replace("~1", "/").replace("~0", "~"))
        return place


def _given_values(schema: _Schema) -> list[Any]:
    """Return the values that *schema* itself names, the most binding first."""
    named = [schema["const"]] if "const" in schema else []
    named += _list(schema.get("enum"))
    named += [schema["default"]] if "default" in schema else []
    return named + _list(schema.get("examples"))


def _type_of(schema: _Schema) -> str:
    """Return the type of value to make, or ``given`` when the schema names one itself."""
    if _given_values(schema):
        return "given"
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), "null")
    if isinstance(kind, str):
        return kind
    return "object" if schema["properties"] else "string"


def _string(schema: _Schema) -> str:
    made = _FORMATS.get(str(schema.get("format")), _TEXT)
    shortest, longest = _bound(schema, "minLength"), _bound(schema, "maxLength")
    if shortest is not None:
        made = made.ljust(min(int(shortest), MOST_CHARACTERS + 1), ".")
    return made if longest is None else made[: max(0, int(longest))]


def _number(schema: _Schema, *, step: int | None) -> float:
    """Return 0 if it fits, else a number at one of the bounds; a multiple of *step* if given."""
    least, above = _bound(schema, "minimum"), _bound(schema, "exclusiveMinimum")
    most, below = _bound(schema, "maximum"), _bound(schema, "exclusiveMaximum")
    factor = _bound(schema, "multipleOf") or step
    bounds = [bound for bound in (least, above, most, below) if bound is not None]
    places = [0, *bounds, sum(bounds) / max(1, len(bounds))]
    if factor:
        candidates = [(place // factor + n) * factor for place in places for n in (0, 1, -1)]
    else:
        candidates = [place + n for place in places for n in (0, 1, -1)]
    for number in candidates:
        if (
            (least is None or number >= least)
            and (above is None or number > above)
            and (most is None or number <= most)
            and (below is None or number < below)
        ):
            return int(number) if number == int(number) else number
    return 0


def _bound(schema: _Schema, name: str) -> float | None:
    """Return the bound *name* unless it is no number, or one that nobody means."""
    value = schema.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= _MOST_BOUND else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
