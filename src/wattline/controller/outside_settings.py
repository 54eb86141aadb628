"""Settings of what is beside Dynamo's own pages: Prometheus, and pods with a foreign agent."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from wattline.catalog.fleet_spec import Name
from wattline.catalog.yaml_files import StrictModel
from wattline.controller.setting_types import KubeName, PathText, Seconds, Url

Parameter = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]{0,500}$")]


class PrometheusSpec(StrictModel):
    """A Prometheus server: history for the forecast, and what nobody else tells."""

    url: Url
    """Its address, with a path before `/api/v1` if it has one."""
    token: str | None = Field(default=None, repr=False)
    """Bearer token; better in a file."""
    token_file: PathText | None = None
    """File with the bearer token, read anew for each batch."""
    ca_file: PathText | None = None
    """Certificates to check its own against; left out: those of the system."""
    verify: bool = True
    """Check its certificate."""
    params: dict[Parameter, Parameter] = Field(default={}, max_length=50)
    """Query parameters to add to every query: a tenant, `dedup`."""
    limit_s: Seconds = 5.0
    """Time limit of a batch. No tick waits for it."""
    interval_s: Seconds = 15.0
    """Time between two batches."""
    window_s: int = Field(default=60, ge=5, le=3600)
    """Seconds over which counts are taken: at least four scrapes."""
    range_s: float = Field(default=1200.0, ge=0.0, le=86_400.0)
    """How far back to ask for demand at the start, to warm the forecast up; 0: not at all."""
    draw_age_s: Seconds = 60.0
    """A draw that is older counts as missing."""
    namespaces: dict[Name, str] = Field(default={})
    """Per deployment: its Dynamo namespace, where one Prometheus sees several with one model."""

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.token is not None and self.token_file is not None:
            raise ValueError("give one of token, token_file")
        return self


class PodsSpec(StrictModel):
    """The pods of one pool, by the labels that Dynamo's operator puts on them."""

    graph_deployment: KubeName
    """Name of the DynamoGraphDeployment."""
    component: KubeName
    """Name of its component."""


class AnnotationsSpec(StrictModel):
    """Caps as pod annotations, for clusters with a foreign power agent.

    Nothing proves that a limit is in force then: docs/guides/annotations.md says what is booked.
    """

    namespace: KubeName
    """Namespace of the pods."""
    pods: dict[Name, PodsSpec] = Field(min_length=1)
    """Per pool: its pods."""
    kubeconfig: PathText | None = None
    """Kubeconfig; left out: the pod's service account, else `KUBECONFIG`."""
    interval_s: Seconds = 5.0
    """Time between two looks at the pods."""
    trust_s: Annotated[float, Field(ge=15.0, le=86_400.0)] | None = None
    """Take a limit for enforced so long after its annotation was read back. Left out: never, and a
    GPU of which nobody else tells the limit stays booked at its largest."""
