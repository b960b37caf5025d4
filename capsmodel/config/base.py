"""What every configuration is made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ImageShape = Annotated[
    tuple[
        Annotated[int, Field(ge=1, le=16)],
        Annotated[int, Field(ge=5, le=512)],
        Annotated[int, Field(ge=5, le=512)],
    ],
    Field(strict=False),
]
"""Channels, height and width of an image, in pixels."""


class Config(BaseModel):
    """Base of every configuration: strict types, no unknown fields, no NaN, immutable."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        # Schemas are built when first used: by then a package that adds a member to an open set can
        # import everything that it needs from here.
        defer_build=True,
    )
