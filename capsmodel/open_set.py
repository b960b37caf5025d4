"""Open sets: tables that map a name to its configuration and its implementation.

A routing, a loss or a data set is one file plus one line in a table of `capsmodel.config`. The
table knows the implementation only as an import path, so that a specification can be validated in
a process that has no torch. A package of the user's own adds members by entry point, installed on
both sides (control plane and workers):

    [project.entry-points."capsmodel.routings"]
    my-routing = "my_package.config:MEMBER"        # a capsmodel.open_set.Member
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, get_args

from pydantic import (
    BaseModel,
    GetCoreSchemaHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import (
    CoreSchema,
    InitErrorDetails,
    PydanticCustomError,
    PydanticKnownError,
    core_schema,
)

logger = logging.getLogger(__name__)

_CORE_ERRORS = frozenset(get_args(core_schema.ErrorType))


@dataclass(frozen=True)
class Member:
    """One member: its Pydantic configuration and the import path of what it configures."""

    config: type[BaseModel]
    """Has a field `type: Literal[name]`; its module imports no torch."""
    implementation: str | Callable[..., Any]
    """`"module:attribute"`, imported only where the member is used; or the thing itself."""


class OpenSet:
    """A named table of members; also the Pydantic annotation of a field that holds one of them.

    `Annotated[BaseConfig, SET]` validates by the field `type`: an unknown name is an error that
    lists the known ones, and a missing one means `default`.
    """

    def __init__(self, entry_point_group: str, default: str, members: dict[str, Member]) -> None:
        self.entry_point_group = entry_point_group
        self.default = default
        self._own = members
        self._registered: dict[str, Member] = {}

    def register(
        self, name: str, config: type[BaseModel], implementation: str | Callable[..., Any]
    ) -> None:
        """Add a member in this process: for scripts and notebooks that use the library alone.

        Jobs run in other processes; for them a package declares an entry point.

        Raises:
            ValueError: The name is taken, or the configuration's `type` has another default.
        """
        if name in self.members and name not in self._registered:
            raise ValueError(f"{name!r} is taken: choose another name than {sorted(self.members)}")
        if problem := _misnamed(name, config):
            raise ValueError(problem)
        self._registered[name] = Member(config, implementation)

    @property
    def members(self) -> Mapping[str, Member]:
        """Our own members, those of installed packages, those registered in this process."""
        return {**self._installed, **self._registered}

    @cached_property
    def _installed(self) -> dict[str, Member]:
        """Our own members, then those of installed packages; a broken package is left out."""
        found = dict(self._own)
        for point in entry_points(group=self.entry_point_group):
            try:
                member = point.load()
            except Exception:
                logger.warning("entry point %s = %s failed", point.name, point.value, exc_info=True)
                continue
            if not isinstance(member, Member) or point.name in found:
                logger.warning("entry point %s = %s is left out", point.name, point.value)
                continue
            if problem := _misnamed(point.name, member.config):
                logger.warning("entry point %s is left out: %s", point.name, problem)
                continue
            found[point.name] = member
        return found

    def implementation(self, name: str) -> Any:
        """Import and return what the member `name` stands for."""
        implementation = self.members[name].implementation
        if not isinstance(implementation, str):
            return implementation
        module, _, attribute = implementation.partition(":")
        return getattr(import_module(module), attribute)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        choices = {
            name: handler.generate_schema(member.config) for name, member in self.members.items()
        }
        union = core_schema.tagged_union_schema(choices, discriminator="type")
        return core_schema.no_info_wrap_validator_function(
            self._validate,
            union,
            serialization=core_schema.wrap_serializer_function_ser_schema(
                self._serialize, schema=union, info_arg=True
            ),
        )

    def _serialize(
        self, value: Any, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> Any:
        if value.type in self._registered:  # later than the schema, which does not know it
            return value.model_dump(mode=info.mode)
        return handler(value)

    def _validate(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, dict) and "type" not in value:
            value = {"type": self.default, **value}
        kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        if isinstance(kind, str) and kind in self._registered:
            return self._registered[kind].config.model_validate(value)
        if isinstance(kind, str) and kind not in self.members:
            known = ", ".join(map(repr, self.members))
            context = {"discriminator": "'type'", "tag": kind, "expected_tags": known}
            raise PydanticKnownError("union_tag_invalid", context)
        try:
            return handler(value)
        except ValidationError as error:
            raise self._without_tags(error) from None

    def _without_tags(self, error: ValidationError) -> ValidationError:
        """Leave the member's name out of every location: users address `/routing/iterations`."""
        details: list[InitErrorDetails] = []
        for line in error.errors():
            kind: str | PydanticCustomError = line["type"]
            if line["type"] not in _CORE_ERRORS:
                message = line["msg"].replace("{", "{{").replace("}", "}}")
                kind = PydanticCustomError(line["type"], message)
            details.append(
                InitErrorDetails(
                    type=kind, loc=line["loc"][1:], input=line["input"], ctx=line.get("ctx", {})
                )
            )
        return ValidationError.from_exception_data(error.title, details)


def _misnamed(name: str, config: type[BaseModel]) -> str | None:
    """What is wrong with the `type` of a member's configuration, if anything."""
    field = config.model_fields.get("type")
    if field is not None and field.default == name:
        return None
    return f'{config.__name__} needs the field `type: Literal["{name}"] = "{name}"`'
