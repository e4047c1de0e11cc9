"""`stargate export` of a run with a tiny model: what is written, and that others load it."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from stargate.config.files import dump_config
from stargate.config.run import RunConfig
from stargate.launch.cli import main
from tests.integration.trained_run import save_trained_run

pytestmark = pytest.mark.integration

ASK = [{"role": "user", "content": "Which bike should I buy?"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    return save_trained_run(tmp_path_factory.mktemp("run"), embedded)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "asker"
    before = os.umask(0o022)
    try:
        assert main(["export", str(run), str(out)]) == 0
    finally:
        os.umask(before)
    return out


def test_the_folder_has_what_others_need_with_usual_modes(exported: Path) -> None:
    names = {file.name for file in exported.iterdir()}
    assert {"README.md", "chat_template.jinja", "config.json", "generation_config.json"} <= names
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not names & {"weight-sums.json", "changed-columns.json", "manifest.json"}
    modes = {stat.S_IMODE(file.stat().st_mode) for file in exported.iterdir()}
    assert modes == {0o644} and stat.S_IMODE(exported.stat().st_mode) == 0o755


def test_the_weights_are_those_of_the_checkpoint(run: Path, exported: Path) -> None:
    weights = (run / "models" / "m1" / "model.safetensors").read_bytes()
    assert (exported / "model.safetensors").read_bytes() == weights


def test_generation_config_is_the_questioners_sampling(exported: Path) -> None:
    assert json.loads((exported / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": [2],
        "pad_token_id": 2,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 0,
        "max_new_tokens": 12,
    }


def test_transformers_asks_with_the_runs_prompt(exported: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(exported)
    model: Any = AutoModelForCausalLM.from_pretrained(exported)
    prompt = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert "You ask one short question about the user before you help." in prompt
    assert prompt.endswith("Which bike should I buy?<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    written = model.generate(**ids)
    assert 0 < written.shape[1] - ids["input_ids"].shape[1] <= 12
    assert model.generation_config.temperature == 0.7 and model.generation_config.top_k == 0


def test_the_card_says_what_it_is(exported: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    front = card.split("---")[1]
    assert 'license: "apache-2.0"' in front
    assert 'base_model: "HuggingFaceTB/SmolLM2-135M-Instruct"' in front
    assert re.search(r"facts elicited per dialogue \| .*\[.*\] \| .*\[.*\] \| \+.*\[", card)
    assert "2 dialogues of 2 turns per pair" in card
    assert "95% interval over tasks and personas;" in card
    assert "unfit" in card and "win rate," not in card
    assert "vllm 0.32.0" in card and "up to 3 questions" in card
    config = json.loads((exported / "config.json").read_text())
    assert config["_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_template_elsewhere_does_not_win(run: Path, tmp_path: Path) -> None:
    """tokenizer_config.json may hold the base model's template, too."""
    file = run / "models" / "m1" / "tokenizer_config.json"
    before = file.read_text(encoding="utf-8")
    template = (run / "models" / "m1" / "chat_template.jinja").read_text(encoding="utf-8")
    settings = json.loads(before) | {"chat_template": template}
    file.write_text(json.dumps(settings), encoding="utf-8")
    try:
        assert main(["export", str(run), str(tmp_path / "out")]) == 0
    finally:
        file.write_text(before, encoding="utf-8")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "chat_template" not in written


def test_nothing_is_overwritten(
    run: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), str(exported)]) == 3
    assert capsys.readouterr().err.strip() == (
        f"stargate export: {exported}: exists already; give a new folder, or remove it first"
    )


def test_a_failure_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the weights come."""
    from stargate.launch import exporting

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(exporting.shutil, "copyfile", full)
    assert main(["export", str(run), str(tmp_path / "out")]) == 5
    assert "the disk is full" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    [
        ("m7", 2, "checkpoint 'm7' is not one of m0, m1"),
        ("last", 2, "checkpoint 'last' is not one of m0, m1"),
    ],
)
def test_a_wrong_checkpoint_is_one_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argument: str,
    code: int,
    said: str,
) -> None:
    assert main(["export", str(run), str(tmp_path / "x"), "--checkpoint", argument]) == code
    assert capsys.readouterr().err.strip() == f"stargate export: {said}"


def test_a_run_without_a_model_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(RunConfig()), encoding="utf-8")
    assert main(["export", str(tmp_path), str(tmp_path / "x")]) == 3
    assert "has trained no model yet" in capsys.readouterr().err


class Hub:
    """Stands for huggingface_hub's client: notes what it is asked."""

    calls: list[tuple[str, Any]]

    def __init__(self) -> None:
        pass

    def whoami(self) -> dict[str, str]:
        self.calls.append(("whoami", None))
        return {"name": "me"}

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create", (repo_id, options)))
        return f"https://hub/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


def test_push_uploads_the_folder_as_a_private_model(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    Hub.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--push", "me/asker"]) == 0
    assert [name for name, _ in Hub.calls] == ["whoami", "create", "upload"]
    assert Hub.calls[1][1] == ("me/asker", {"private": True, "exist_ok": True})
    assert (Hub.calls[2][1]["repo_id"], Hub.calls[2][1]["folder_path"]) == ("me/asker", out)
    assert 'model="me/asker"' in (out / "README.md").read_text(encoding="utf-8")
    assert "pushed: https://hub/me/asker" in capsys.readouterr().out


def test_who_is_not_logged_in_is_told_before_anything_is_written(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub.constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--push", "me/asker"]) == 4
    assert "not logged in; run: hf auth login" in capsys.readouterr().err
    assert main(["export", str(run), str(out), "--push", "no//name"]) == 4
    assert "--push no//name:" in capsys.readouterr().err
    assert not out.exists()
