"""Kinds of values in a controller's file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

Uuid = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]{1,500}$")]
PathText = Annotated[str, StringConstraints(pattern=r"^[^\x00\r\n]{1,1000}$")]
TimeOfDay = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
KubeName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?$")
]
Seconds = Annotated[float, Field(gt=0.0, le=86_400.0)]
Watts = Annotated[float, Field(gt=0.0, le=1e9)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
