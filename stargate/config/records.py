"""What `records:` in a run's config may say: where its records land beside runs_dir."""

from typing import Annotated

from pydantic import Field, field_validator

from stargate.config.component import Component
from stargate.errors import ConfigError
from stargate.remote.uri import parse_uri


class RecordsConfig(Component):
    """Shared storage that a run's records land on, under URI/NAME of the run's folder.

    The run directory itself stays on the driver's disk: locks, logs and training need one. Every
    file of records is copied as soon as it is finished (sync.py), and `stargate resume`,
    `report` and `eval` take URI/NAME on a machine that has never seen the run.

    Credentials come from the environment or the machine, never from here.
    """

    uri: str | None = None  # e.g. s3://bucket/prefix; None: records are in runs_dir only
    models: bool = True  # m_1, m_2, ... too: without them a run can be read elsewhere, not resumed
    # Seconds between two looks at what is new.
    interval_s: Annotated[float, Field(ge=0.05, le=3600.0)] = 5.0
    # Seconds in which not one byte lands before a run gives up waiting, at its start and its end.
    deadline_s: Annotated[float, Field(gt=0.0, le=604_800.0)] = 600.0

    @field_validator("uri")
    @classmethod
    def _holds_no_secret(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        try:
            return str(parse_uri(uri))
        except ConfigError as error:
            raise ValueError(str(error)) from None
