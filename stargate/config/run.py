"""The configuration of a run: one small pydantic model per component, unknown keys are errors.

Every default is the paper's value (PAPER: N = 10, K in 1..3, T = 0.9, LR 2e-5, ...) unless its
comment says otherwise. Files are read and written by files.py.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from stargate.config.algorithm import AnyAlgorithm, StarGateConfig
from stargate.config.cluster import ClusterConfig, ScheduleConfig
from stargate.config.component import TAG, Component, Fraction, NonNegativeInt, PositiveInt
from stargate.config.judge import EngineBackend, JudgeConfig
from stargate.config.outputs import RecordsConfig, TrackingConfig
from stargate.config.roleplayer import AnyRoleplayerConfig, ApiRoleplayerConfig

_CORE_LIST = r"^\d+(-\d+)?([,|]\d+(-\d+)?)*$"

Device = Literal["cpu", "cuda"]
# Texts that an engine writes at once: a core is busy with 64, a GPU with vLLM's own 256.
_NUM_SEQS: dict[Device, int] = {"cpu": 64, "cuda": 256}
# Tokens that a scorer computes at once: a GPU is idle between smaller passes.
_BATCH_TOKENS: dict[Device, int] = {"cpu": 4096, "cuda": 16384}
# Dialogues under way for each place in an engine: the next text is there when one ends.
_DIALOGUES_PER_PLACE = 1.2


# K, the turns of a dialogue: drawn uniformly once per pair.
Turns = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class SplitLimit(Component):
    """How much of a split to use: the first `tasks` x the first `personas`. None means all."""

    tasks: PositiveInt | None = None
    personas: PositiveInt | None = None


class DataConfig(Component):
    """Where tasks, personas and golds come from."""

    source: str = "starter"  # "starter", "asking" (both packaged), or a folder of your own
    train_splits: tuple[str, ...] = ("A", "B")  # iteration t trains on train_splits[t % len]
    test_split: str = "test"
    train: SplitLimit = SplitLimit()
    test: SplitLimit = SplitLimit()

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        if not self.train_splits:
            raise ValueError("train_splits must name at least one split, got none")
        if self.test_split in self.train_splits:
            raise ValueError(
                f"test_split must not be a train split, got {self.test_split!r} in both"
            )
        return self


class SamplingConfig(Component):
    """How a role samples. Temperature 0 is greedy."""

    temperature: Annotated[float, Field(ge=0.0, le=5.0)] = 0.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_new_tokens: PositiveInt = 700


class EngineConfig(Component):
    """One vLLM engine. `None` lets the machine decide (actors/engines/spec.py)."""

    num_engines: PositiveInt = 1
    tensor_parallel_size: PositiveInt = 1
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    max_model_len: PositiveInt = 2048
    max_num_seqs: PositiveInt | None = None  # None: 64 on a CPU, 256 on a GPU
    # Tokens of one step. None: vLLM's own for this GPU (16,384 on an H100); on CPU a whole context.
    max_num_batched_tokens: PositiveInt | None = None
    block_size: PositiveInt | None = (
        None  # None: 32 on CPU (its own 128 never hits), vLLM's own on GPU
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    cpu_kv_cache_gb: Annotated[float, Field(gt=0.0)] = 1.0
    # A list such as "0" or "0-3,6", one per rank as in "0-1|2-3"; None: shared out by the launcher.
    cpu_cores: Annotated[str, Field(pattern=_CORE_LIST)] | None = None
    enforce_eager: bool | None = None  # None: eager on CPU, CUDA graphs on GPU

    def num_places(self, device: Device) -> int:
        """Texts that one engine writes at once."""
        return self.max_num_seqs or _NUM_SEQS[device]


# Switches of a chat template, by name. A template that knows `enable_thinking` gets false where it
# is not given; one that a template does not know is refused.
TemplateSwitches = dict[str, Any]


class QuestionerConfig(Component):
    """The policy m_t: the run's `model`, sampled at T = 0.9 and top_p = 0.9 (PAPER 1).

    `chat_template_kwargs` hold for its questions and its responses.
    """

    chat_template_kwargs: TemplateSwitches = Field(default_factory=dict)
    sampling: SamplingConfig = SamplingConfig(temperature=0.9, top_p=0.9)
    engine: EngineConfig = EngineConfig()


class EngineRoleplayerConfig(AnyRoleplayerConfig):
    """A Roleplayer on engines of the run."""

    type: Literal["engine"] = "engine"
    model: str = "embedded"
    chat_template_kwargs: TemplateSwitches = Field(default_factory=dict)
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()


def _roleplayer_tag(value: object) -> str:
    """The tag of a Roleplayer's variant: files of before name none, and mean an engine."""
    kind = value.get("type", "engine") if isinstance(value, dict) else getattr(value, "type", None)
    return f"{TAG}{kind}"


RoleplayerConfig = Annotated[
    Annotated[EngineRoleplayerConfig, Tag(f"{TAG}engine")]
    | Annotated[ApiRoleplayerConfig, Tag(f"{TAG}api")],
    Discriminator(_roleplayer_tag, "roleplayer_type", "type must be engine or api"),
]


class DegenerationConfig(Component):
    """When a checkpoint counts as broken: the share of its sampled texts that are empty or repeat
    themselves to the token limit.

    A run stops when the share is above `max_share`, or above m_0's own by more than `max_rise`;
    with fewer than `min_texts` texts there is no verdict. m_0 has under 1 % (SmolLM2-135M).
    """

    max_share: Fraction = 0.5
    max_rise: Fraction = 0.25
    min_texts: PositiveInt = 64


class RolloutConfig(Component):
    """N dialogues per pair; K drawn uniformly from `turns` once per pair and shared by its
    dialogues.

    A turn (question and answer) that takes longer than `turn_timeout_s` is begun anew once, then
    its dialogue is dropped as "turn_timeout". Waiting for a place in a busy engine counts.
    """

    num_dialogues: PositiveInt = 10
    turns: Turns = (1, 2, 3)
    # None: 1.2 for each place of all engines (RunConfig.num_concurrent_dialogues)
    max_concurrent_dialogues: PositiveInt | None = None
    # So many dialogues per Questioner engine begin at once, then one more for each question that is
    # written, so that the Roleplayer has work at once; 0: all begin at once.
    slow_start: NonNegativeInt = 16
    num_workers: NonNegativeInt = 0  # processes that play dialogues; 0: the driver plays them
    turn_timeout_s: Annotated[float, Field(gt=0.0, le=86_400.0)] = 1800.0
    degeneration: DegenerationConfig = DegenerationConfig()


class ScorerConfig(Component):
    """The frozen m_0 that scores golds.

    A scorer that has not answered after `timeout_s`, and a second per `min_tokens_per_s` tokens
    that it was sent, hangs: it is ended and started again as if it had died, and its requests are
    sent again. (SmolLM2-135M scores 1,000 tokens/s on one core.)
    """

    num_scorers: PositiveInt = 1
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_batch_tokens: PositiveInt | None = None  # None: 4,096 on a CPU, 16,384 on a GPU
    num_threads: PositiveInt | None = None  # None: all cores the launcher gives it
    # Of one scorer; null: a whole one in a run on GPUs. 0: it is on the CPU, and this is said.
    num_gpus: Annotated[float, Field(ge=0.0)] | None = None
    timeout_s: Annotated[float, Field(gt=0.0, le=86_400.0)] = 600.0
    min_tokens_per_s: Annotated[float, Field(gt=0.0)] = 20.0

    @field_validator("num_gpus")
    @classmethod
    def _one_gpu(cls, num_gpus: float | None) -> float | None:
        """The model is not divided: of more GPUs a scorer would use the first."""
        if num_gpus is not None and num_gpus > 1.0:
            raise ValueError(
                f"a scorer computes on one GPU, which must hold m_0: at most 1, got {num_gpus:g}; "
                "num_scorers uses more GPUs"
            )
        return num_gpus

    def batch_tokens(self, device: Device) -> int:
        """Tokens of a pass."""
        return self.max_batch_tokens or _BATCH_TOKENS[device]


class ResponseConfig(Component):
    """The own response after the selected dialogue, written by m_t greedily (PAPER 4)."""

    sampling: SamplingConfig = SamplingConfig()


class LoraConfig(Component):
    """Train low-rank adapters (peft) in place of all weights; they are merged into the saved model.

    Engines, scorer and the next iteration read the merged one. `save: adapter` also keeps what was
    trained, in the model folder's `adapter`, for peft's PeftModel and vLLM's LoRARequest: it
    belongs to the model that the iteration started from. Adapters want about ten times the learning
    rate of a full training.
    """

    rank: PositiveInt = 16
    alpha: PositiveInt = 32  # the adapters' effect is scaled by alpha / rank
    target_modules: tuple[str, ...] = ()  # e.g. [q_proj, v_proj]; none: every linear layer
    save: Literal["merged", "adapter"] = "merged"


class TrainerConfig(Component):
    """Training (PAPER 5)."""

    backend: str = "deepspeed"  # of actors/training/backend.py, or "package.module:Class"
    # Which examples m_{t+1} learns from: those of iteration t (the paper), or of all so far. The
    # latter gives up what alternating splits are for: from t = 2 on, m_t plays pairs that it was
    # trained on.
    examples: Literal["iteration", "all"] = "iteration"
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-5
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    warmup_fraction: Fraction = 0.1
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    # A gradient norm that is more times larger than the median of the steps before stops training.
    max_grad_norm_growth: Annotated[float, Field(gt=1.0)] = 20.0
    num_epochs: PositiveInt = 1
    batch_size: PositiveInt = 64  # examples per optimizer step, over all ranks (4 x 16)
    micro_batch_size: PositiveInt = 4  # examples per forward pass of one rank
    max_length: PositiveInt = 1024  # tokens; longer examples are dropped and counted
    packing: bool = True  # examples of a forward pass stand side by side instead of being padded
    # Packed tokens of one forward pass; None: micro_batch_size x max_length, as padding could take
    row_tokens: PositiveInt | None = None
    activation_checkpointing: bool = False  # less memory for about a third more time
    lora: LoraConfig | None = None  # None: all weights are trained
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    zero_stage: Literal[0, 1, 2, 3] = 2
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    num_ranks: PositiveInt = 1
    num_threads: PositiveInt | None = None  # per rank; None: the cores shared out over the ranks
    # Null: a whole one in a run on GPUs. 0: it trains on the CPU, and this is said.
    num_gpus_per_rank: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    # A checkpoint within a training after so many optimizer steps, and after so many seconds (and
    # at least 10 times what the last one took); null: never. It has 12 bytes per weight, and there
    # are two; they are removed when training ends.
    checkpoint_steps: PositiveInt | None = None
    checkpoint_seconds: Annotated[float, Field(gt=0.0)] | None = 300.0

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % (self.num_ranks * self.micro_batch_size):
            raise ValueError(
                f"batch_size must be a multiple of num_ranks x micro_batch_size = "
                f"{self.num_ranks * self.micro_batch_size}, got {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        gpus = self.num_gpus_per_rank
        if self.num_ranks > 1 and gpus is not None and 0 < gpus < 1:
            raise ValueError(
                f"num_gpus_per_rank must be 0 or 1 with {self.num_ranks} ranks, got {gpus:g}: "
                "NCCL refuses two ranks on one GPU"
            )
        return self


class EvaluationConfig(Component):
    """What is measured before and after each iteration on the test pairs.

    K is drawn from `turns` as in training (RolloutConfig), for every checkpoint the same. The
    paper's test has 1 to 3; ours 3, since an early turn's measures are in a longer dialogue, too.
    """

    enabled: bool = True
    num_dialogues: PositiveInt = 2
    turns: Turns = (3,)
    # Dialogues per pair that get the costlier controls: after each turn, and with the persona too.
    num_detailed_dialogues: NonNegativeInt = 1
    # Other personas' golds scored after each dialogue; below 2 there is no contrast.
    num_other_golds: NonNegativeInt = 2
    references: bool = True  # rows that no policy learned, and skill (evaluation/references.py)
    show_dialogues: NonNegativeInt = 3
    # Whether the responses that a judge compares are asked for with the response instruction, on
    # both sides. False as in the paper: training has made it superfluous (context distillation).
    response_instruction: bool = True
    judge: JudgeConfig | None = None  # None: no responses are made and no win rates computed


class RunConfig(Component):
    """A whole run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: NonNegativeInt = 0
    runs_dir: Path = Path("runs")
    records: RecordsConfig = RecordsConfig()  # shared storage that records land on, too
    model: str = "embedded"  # m_0: "embedded", a Hugging Face id or a local folder
    prompts: str = "paper"  # a packaged prompt set, or a YAML file of your own
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: GPUs if the machine has any
    trust_remote_code: bool = False
    cluster: ClusterConfig = ClusterConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    questioner: QuestionerConfig = QuestionerConfig()
    roleplayer: RoleplayerConfig = EngineRoleplayerConfig()
    scorer: ScorerConfig = ScorerConfig()
    algorithm: AnyAlgorithm = StarGateConfig()
    response: ResponseConfig = ResponseConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def engines(self) -> dict[str, EngineConfig]:
        """The engines of each role that has any."""
        engines = {"questioner": self.questioner.engine}
        if isinstance(self.roleplayer, EngineRoleplayerConfig):
            engines["roleplayer"] = self.roleplayer.engine
        return engines

    @property
    def num_first_dialogues(self) -> int:
        """How many dialogues begin at once, over all Questioner engines; 0: all."""
        return self.rollout.slow_start * self.questioner.engine.num_engines

    def num_concurrent_dialogues(self, device: Device) -> int:
        """How many dialogues are under way at once."""
        places = sum(
            engine.num_engines * engine.num_places(device) for engine in self.engines.values()
        )
        if isinstance(self.roleplayer, ApiRoleplayerConfig):
            places += self.roleplayer.oracle.limits.max_concurrency
        return self.rollout.max_concurrent_dialogues or math.ceil(_DIALOGUES_PER_PLACE * places)

    @model_validator(mode="after")
    def _api_stands_for_an_engine(self) -> Self:
        """What an API can't do in place of a Roleplayer's engine."""
        if isinstance(self.roleplayer, EngineRoleplayerConfig):
            return self
        if self.rollout.num_workers:
            raise ValueError(
                "with roleplayer.type=api the driver plays the dialogues, since it keeps the API's "
                f"limits: rollout.num_workers must be 0, got {self.rollout.num_workers}"
            )
        judge = self.evaluation.judge
        if judge is not None and isinstance(judge.backend, EngineBackend):
            raise ValueError(
                "evaluation.judge.backend.type=engine is the Roleplayer's engine, and with "
                "roleplayer.type=api there is none: use type: api for the judge, too"
            )
        return self

    @model_validator(mode="after")
    def _samples_fit(self) -> Self:
        sampling = self.questioner.sampling
        self.algorithm.check_samples(sampling.temperature, sampling.top_p, self.trainer.examples)
        return self

    @model_validator(mode="after")
    def _one_gpu_is_enough(self) -> Self:
        """What colocated actors share is theirs together: nobody has GPUs of its own."""
        if self.cluster.strategy != "colocated":
            return self
        sizes = {
            f"{role}.engine.tensor_parallel_size": engine.tensor_parallel_size
            for role, engine in self.engines.items()
        }
        for key, got, wanted in (
            *((key, size, 1) for key, size in sizes.items()),
            ("trainer.num_ranks", self.trainer.num_ranks, 1),
            ("scorer.num_gpus", self.scorer.num_gpus, 0),
            ("trainer.num_gpus_per_rank", self.trainer.num_gpus_per_rank, 0),
        ):
            if got is not None and got != wanted:
                raise ValueError(
                    f"cluster.strategy=colocated is one GPU for all: {key} must be {wanted}, "
                    f"got {got:g}"
                )
        if self.schedule.overlap == "always":
            raise ValueError(
                "cluster.strategy=colocated takes turns: schedule.overlap must be auto or never"
            )
        if self.device == "cpu":
            raise ValueError(
                "cluster.strategy=colocated needs a GPU, where vLLM can sleep; got device=cpu"
            )
        return self
