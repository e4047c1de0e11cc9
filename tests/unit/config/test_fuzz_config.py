"""Fuzz of configs: whatever stands in a file or an override, the user sees one line or it works."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from stargate.config.files import dump_config, load_config, packaged_configs_dir
from stargate.config.run import RunConfig
from stargate.errors import ConfigError
from stargate.launch import session
from stargate.launch.cli import main
from stargate.text.prompts import load_prompts

# With this variable that many random values are drawn instead of the same ones (tests/conftest.py):
# STARGATE_FUZZ=5000 pytest tests/unit -k fuzz
NUM_RANDOM = int(os.environ.get("STARGATE_FUZZ", "0"))


def examples(count: int) -> int:
    """How many values a test draws."""
    return NUM_RANDOM or count


FAST = settings(
    max_examples=examples(25),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    # A failure names its values, so they are not made smaller, which takes minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
# Exit codes of a user's mistake: none of them is a defect (1) or success.
MISTAKES = range(2, 8)


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """`stargate run` ends where the run would begin: a config that is accepted must write itself
    so that the same config is read back.
    """

    def run_session(config: RunConfig) -> None:
        assert RunConfig.model_validate(yaml.safe_load(dump_config(config))) == config

    monkeypatch.setattr(session, "run_session", run_session)


def outcome(argv: list[str]) -> int:
    """Runs a command. Its exit code is that of a success, or of a mistake told in one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as ended:  # argparse says what is wrong with an option, after its usage
            assert ended.code == 2
            return 2
    lines = err.getvalue().splitlines()
    if code == 0:
        assert lines == []
    else:
        assert code in MISTAKES, (code, lines)
        assert len(lines) == 1 and lines[0].startswith("stargate "), lines
        assert len(lines[0]) < 2000, len(lines[0])
    return code


def yaml_file(folder: Path, tree: Any) -> str:
    file = folder / "tree.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(file)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.binary(max_size=4),
    st.dates(),
    st.sampled_from(["embedded", "starter", "../x", "\x00", "\x1b[2J", "1e400", "~"]),
)
TREES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


def key_paths(model: type[Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a config, groups too."""
    for name, entry in model.model_fields.items():
        yield prefix + name
        if hasattr(entry.annotation, "model_fields"):
            yield from key_paths(entry.annotation, f"{prefix}{name}.")


KEYS = sorted(key_paths(RunConfig))


@FAST
@given(content=st.binary(max_size=200))
@example(content=b"\xff\xfe")
@example(content=b"[" * 500)
@example(content=b"a: !!int x")
@example(content=b"a: !!int ''")
@example(content=b"a: !!bool x")
@example(content=b"a: !!timestamp x")
@example(content=b"a: 2001-99-99")
@example(content=b"a: 0b_")
@example(content=b"? {a: 1}\n: 2")
@example(content=b"!!python/object/apply:os.system ['true']")
@example(content=b"seed: " + b"9" * 5000)
@example(content=b"a: &a [*a]")
@example(content=b"name: &a {b: *a}")
def test_any_bytes_as_a_config(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    outcome(["run", str(file)])


def test_a_short_file_that_is_an_endless_value(tmp_path: Path) -> None:
    """Aliases of aliases: nine lines that are 10^9 values when they are written out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    file = tmp_path / "c.yaml"
    file.write_text("\n".join([*lines, "seed: *a9"]))
    assert outcome(["run", str(file)]) == ConfigError.exit_code
    file.write_text(
        "\n".join([f"name:\n  {line}" if i == 0 else f"  {line}" for i, line in enumerate(lines)])
    )
    assert outcome(["run", str(file)]) == ConfigError.exit_code


@FAST
@given(tree=TREES)
def test_any_tree_as_a_config(tmp_path: Path, tree: Any) -> None:
    outcome(["run", yaml_file(tmp_path, tree)])


@FAST
@given(data=st.data())
def test_any_value_at_any_key(tmp_path: Path, data: st.DataObject) -> None:
    tree: dict[str, Any] = {}
    for key in data.draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)):
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[leaf] = data.draw(TREES)
    outcome(["run", yaml_file(tmp_path, tree)])


@FAST
@given(data=st.data())
def test_any_overrides(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "c.yaml").write_text("seed: 1\n")  # the shipped ones take 20 ms to parse
    values = st.text(max_size=20) | TREES.map(lambda tree: json.dumps(tree, default=str))
    overrides = data.draw(
        st.lists(
            st.text(max_size=20)
            | st.builds(lambda key, value: f"{key}={value}", st.sampled_from(KEYS), values)
            | st.builds(lambda key, value: f"{key}={value}", st.text(max_size=6), values),
            max_size=3,
        )
    )
    outcome(["run", str(tmp_path / "c.yaml"), *overrides])


@FAST
@given(name=st.text(max_size=300))
@example(name="x" * 5000)
@example(name="/")
@example(name=".")
def test_any_name_of_a_config(name: str) -> None:
    for command in ("run", "ablate", "submit"):
        assert outcome([command, name]) != 0


@FAST
@given(tree=TREES)
@example(tree={"opening": "{{ 1 / 0 }}"})
def test_any_tree_as_prompts_and_as_a_data_build(tmp_path: Path, tree: Any) -> None:
    file = yaml_file(tmp_path, tree)
    with pytest.raises(ConfigError):
        load_prompts(file)
    assert outcome(["data", "build", file]) != 0


@pytest.mark.parametrize("hole", ["{{ 1 / 0 }}", "{{ a.b.c }}", "{% if", "{{ ''.join(7) }}"])
def test_a_template_that_can_not_be_filled_is_named(tmp_path: Path, hole: str) -> None:
    tree = yaml.safe_load((packaged_configs_dir() / "prompts/paper.yaml").read_text())
    file = yaml_file(tmp_path, {**tree, "no_preference": hole})
    with pytest.raises(ConfigError, match="prompt"):
        assert load_prompts(file).no_preference_text


def test_numbers_without_an_end_are_refused() -> None:
    for override in ("trainer.learning_rate=.inf", "rollout.turn_timeout_s=.nan"):
        with pytest.raises(ConfigError, match="finite number"):
            load_config("cpu_demo", [override])
