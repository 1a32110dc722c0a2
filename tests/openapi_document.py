"""The OpenAPI document, taken apart for the tests that compare it with what happens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from openapi_schema_validator import OAS31Validator, oas31_format_checker

from app.main import create_app
from app.settings import Settings
from app.web.callers import PUBLIC


@cache
def openapi(public_url: str = "https://tokens.example.com") -> dict[str, Any]:
    return create_app(Settings(_env_file=None, public_url=public_url)).openapi()


@dataclass(frozen=True)
class Operation:
    """One operation of the document."""

    method: str
    path: str
    described: Mapping[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        return str(self.described["operationId"])

    @property
    def scopes(self) -> list[str]:
        """What the credential must carry; the alternatives agree, as a test says."""
        [scopes] = self.described["security"][0].values()
        return list(scopes)

    @property
    def codes(self) -> set[str]:
        """The problems it is said to answer with."""
        return {
            code
            for status, response in self.described["responses"].items()
            for media in response.get("content", {}).values()
            for code in media.get("examples", ())
            if status != "200"
        }


OPERATIONS = {
    operation.id: operation
    for path, methods in openapi()["paths"].items()
    for operation in (Operation(method, path, told) for method, told in methods.items())
}
ASKING = [operation for operation in OPERATIONS.values() if operation.path not in PUBLIC]
READING = [operation for operation in OPERATIONS.values() if "requestBody" in operation.described]


def check(value: Any, schema: Mapping[str, Any]) -> None:
    """See that *value* fits *schema*, which may refer to the components."""
    whole = {**schema, "components": openapi()["components"]}
    OAS31Validator(whole, format_checker=oas31_format_checker).validate(value)


def example_of(operation_id: str) -> Any:
    answer = OPERATIONS[operation_id].described["responses"]["200"]
    return answer["content"]["application/json"]["example"]
