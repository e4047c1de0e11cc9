"""(torch) Hugging Face's Trainer with its usual padding collator, as anybody would set it up.

bfloat16 is autocast over float32 weights: the only way in which Trainer keeps as much precision as
our float32 masters do.
"""

import random
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from stargate.benchmarks.train_work import Job, StepTime

_IGNORED = -100  # a label without loss


def play(job: Job, pipe: Connection) -> None:
    """The same batches as ours, in an order that nobody sorted."""
    torch.set_num_threads(job.num_threads)
    torch.manual_seed(job.seed)
    config = job.config
    model: Any = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=torch.float32)
    if config.lora is not None:
        import peft

        lora = peft.LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            target_modules=list(config.lora.target_modules) or "all-linear",
            task_type="CAUSAL_LM",
        )
        model = peft.get_peft_model(model, lora)
    tokenizer = AutoTokenizer.from_pretrained(job.model_dir)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    trainer = _InOrder(
        model=model,
        args=_arguments(job),
        train_dataset=[*_rows(job)],
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=_IGNORED),
        callbacks=[_Gate(job, pipe)],
    )
    trainer.train()
    pipe.recv()
    pipe.send({"peak_memory_gb": job.peak_memory_gb()})


def _rows(job: Job) -> Iterator[dict[str, list[int]]]:
    """All steps' examples one after the other, shuffled within a step."""
    draw = random.Random(job.seed)
    for step in job.steps:
        chosen = list(step.examples)
        draw.shuffle(chosen)
        for example in (job.examples[i] for i in chosen):
            learned = zip(example.input_ids, example.weights, strict=True)
            labels = [token if weight else _IGNORED for token, weight in learned]
            ids = list(example.input_ids)
            yield {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _arguments(job: Job) -> TrainingArguments:
    config = job.config
    return TrainingArguments(
        output_dir=f"{job.work_dir}/padded_trainer",
        max_steps=len(job.steps),
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=config.dtype == "bfloat16",
        use_cpu=job.device == "cpu",
        gradient_checkpointing=config.activation_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=job.device == "cuda",
        seed=job.seed,
    )


class _InOrder(Trainer):  # type: ignore[misc]  # transformers has no types
    """Takes the examples as they come: each step has the same examples on every side."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return SequentialSampler(self.train_dataset)


class _Gate(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Holds each step back until it is asked for, and times it: forward to optimizer step.

    Putting the batches together happens before, and is not counted.
    """

    def __init__(self, job: Job, pipe: Connection) -> None:
        self._job, self._pipe = job, pipe
        self._start = self._seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._pipe.send(False)  # not packed

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._pipe.recv()
        self._start = self._job.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._seconds = self._job.now() - self._start

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs is not None and "loss" in logs:
            self._pipe.send(StepTime(self._seconds, float(logs["loss"])))
