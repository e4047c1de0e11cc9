"""What `tracking:` in a run's config may say: where its curves go (tracking.py)."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from stargate.config.component import Component


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
