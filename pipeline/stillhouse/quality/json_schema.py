"""Reject completions that are not JSON, or do not match a JSON schema.

- {kind: json-schema, file: prompts/product.schema.json}
- kind: json-schema
  schema: {type: object, required: [label], properties: {label: {enum: [positive, negative]}}}

The text is not changed: with `strip_fence`, JSON inside a Markdown code fence passes and keeps its fence. `format` is only
an annotation, as in the standard. Nothing is fetched: a `$ref` must refer to the schema itself or to a standard
metaschema.
"""

from __future__ import annotations

import json
import re
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from jsonschema_specifications import REGISTRY
from pydantic import Field, model_validator
from referencing import Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from stillhouse.errors import RecipeError
from stillhouse.inputs.user_files import Unreadable, decode_text, parse_json
from stillhouse.quality.base import Filter
from stillhouse.recipe.load import find_input
from stillhouse.settings import Settings, parse_options

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)
_DETAIL = 300  # characters of a validation error, which may quote the whole text
Schema = dict[str, Any] | bool


class JsonSchemaOptions(Settings):
    """Options of this filter: exactly one of `schema` and `file`."""

    schema_: Schema | None = Field(
        default=None, alias="schema", description="a JSON schema, or the path of a file with one"
    )
    file: str | None = Field(default=None, description="a JSON file with the schema, looked up like a prompt file")
    strip_fence: bool = Field(default=True, description="accept a ```json fence around the text")

    @model_validator(mode="after")
    def _exactly_one_schema(self) -> JsonSchemaOptions:
        if (self.schema_ is None) == (self.file is None):
            raise ValueError("set exactly one of `schema` (the schema itself) and `file` (a JSON file with it)")
        return self


def open_filter(options: dict[str, Any]) -> Filter:
    """Build the filter, see the module's docstring."""
    given = parse_options("quality.json-schema", options, JsonSchemaOptions)
    if given.file is not None:
        validator = make_validator(_read(given.file), "quality.json-schema.file", file=given.file)
    else:
        validator = make_validator(given.schema_, "quality.json-schema.schema")
    return lambda completion: schema_problem(completion.text, validator, strip_fence=given.strip_fence)


def make_validator(schema: Any, setting: str, *, file: str | None = None) -> Validator:
    """Return a validator for the draft that a schema names, or for 2020-12 if it names none or an unknown one.

    Args:
        schema: the JSON schema.
        setting: path of the setting that has the schema, or the path of its file, for messages.
        file: the path of the schema's file, if `setting` names a file.

    Raises:
        RecipeError: the schema is invalid; the error names `setting`.
    """
    fields: dict[str, Any] = {"setting": setting} if file is None else {"setting": setting, "value": file}
    try:
        resource = Resource.from_contents(schema, default_specification=DRAFT202012)
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
        _check_references(resource, REGISTRY.resolver_with_root(resource))
    except SchemaError as error:
        raise RecipeError(f"it is not a valid JSON schema: at {error.json_path}, {error.message}", **fields) from error
    except Unresolvable as error:
        raise RecipeError(
            f"it has a $ref that cannot be resolved: {error.ref}",
            fix="refer to the schema itself or to a standard metaschema",
            **fields,
        ) from error
    except RecursionError:
        raise RecipeError("it is not a valid JSON schema: it is nested too deeply", **fields) from None
    validator: Validator = kind(schema, registry=REGISTRY)
    return validator


def schema_problem(text: str, validator: Validator, *, strip_fence: bool = True) -> str | None:
    """Return why a text is not JSON that matches the validator's schema, or None if it is."""
    fenced = _FENCED.fullmatch(text.strip()) if strip_fence else None
    try:
        error = best_match(
            validator.iter_errors(json.loads(fenced[1] if fenced else text, parse_constant=_reject_constant))
        )
    except ValueError as invalid:
        return f"not JSON: {invalid}"
    except RecursionError:
        return "not JSON: nested too deeply"
    return None if error is None else f"at {error.json_path}, {error.message}"[:_DETAIL]


def _check_references(resource: Any, resolver: Any) -> None:
    if isinstance(resource.contents, dict) and "$ref" in resource.contents:
        resolver.lookup(resource.contents["$ref"])
    for part in resource.subresources():
        _check_references(part, resolver.in_subresource(part))


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _read(path: str) -> Any:
    file = find_input(path)
    if file is None:
        raise RecipeError(
            "the file does not exist", setting="quality.json-schema.file", value=path, fix="check the path"
        )
    try:
        return parse_json(decode_text(file.read_bytes()))
    except (OSError, Unreadable) as error:
        raise RecipeError(
            f"it cannot be read as JSON: {error}", setting="quality.json-schema.file", value=path
        ) from error
