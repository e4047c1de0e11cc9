"""What `records:` and `tracking:` in a run's config may say: where its records land beside runs_dir
(stargate/remote), and where its curves go (stargate/monitoring).
"""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from stargate.config.component import Component
from stargate.config.uri import parse_uri
from stargate.errors import ConfigError


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


class WandbConfig(Component):
    """A Weights & Biases run. Its key comes from `wandb login` or WANDB_API_KEY, never from here.

    `offline` keeps it in RUN/wandb until `wandb sync`.
    """

    project: str = Field(default="star-gate", min_length=1)
    entity: str | None = None  # None: the account's own
    mode: Literal["online", "offline"] = "online"


class MlflowConfig(Component):
    """An MLflow run."""

    tracking_uri: str | None = Field(default=None, min_length=1)  # None: MLFLOW_TRACKING_URI's
    experiment: str = Field(default="star-gate", min_length=1)

    @field_validator("tracking_uri")
    @classmethod
    def _holds_no_password(cls, uri: str | None) -> str | None:
        # The config is written beside the run and shown by the trackers.
        if uri is not None and "@" in urlsplit(uri).netloc:
            raise ValueError(
                "the address must hold no user and password; export them as "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or export the whole "
                "address as MLFLOW_TRACKING_URI"
            )
        return uri


class TrackingConfig(Component):
    """Where the curves of a run go. None: not asked for; {}: asked for, as it is by default."""

    tensorboard: bool = True
    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None
