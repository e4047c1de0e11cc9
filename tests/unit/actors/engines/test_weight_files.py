"""Reading, checking and staging weight files, on safetensors files made by hand."""

import json
from pathlib import Path

import pytest

from stargate.actors.engines import weight_files as weights
from stargate.actors.engines.weight_files import TensorHeader
from stargate.errors import ModelError
from stargate.records.model_folder import weight_files

SHAPES = {"embed.weight": (4, 2), "lm_head.weight": (4, 2), "norm.weight": (2,)}


def safetensors_file(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """A valid safetensors file of zeros, 2 bytes a number."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return path


def sharded_folder(folder: Path, weight_map: dict[str, str]) -> Path:
    for name in set(weight_map.values()):
        shapes = {tensor: SHAPES[tensor] for tensor, file in weight_map.items() if file == name}
        safetensors_file(folder / Path(name).name, shapes)
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_headers_of_a_file_and_of_its_folder(tmp_path: Path) -> None:
    file = safetensors_file(tmp_path / "model.safetensors", SHAPES)
    expected = {name: TensorHeader("BF16", shape) for name, shape in SHAPES.items()}
    assert weights.read_headers(file) == expected
    assert weights.read_headers(tmp_path) == expected
    assert weights.num_parameters(expected) == 8 + 8 + 2


def test_headers_of_a_sharded_folder(tmp_path: Path) -> None:
    sharded_folder(tmp_path, {"embed.weight": "a.safetensors", "norm.weight": "b.safetensors"})
    assert weight_files(tmp_path) == [
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
    ]
    assert set(weights.read_headers(tmp_path)) == {"embed.weight", "norm.weight"}


def test_an_index_can_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    sharded_folder(tmp_path, {"norm.weight": "../a.safetensors"})
    with pytest.raises(ModelError, match=r"plain file names, got '\.\./a\.safetensors'"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "expected an object, got list"),
        ("{", "can't be read as JSON"),
        ('{"weight_map": 3}', "not a safetensors index"),
    ],
)
def test_a_bad_index_is_named(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=rf"model\.safetensors\.index\.json: {problem}"):
        weight_files(tmp_path)


def test_a_missing_shard_and_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights; expected"):
        weight_files(tmp_path)
    sharded_folder(tmp_path, {"norm.weight": "b.safetensors"})
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"1 of 1 weight files are missing, first b\.safet"):
        weight_files(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_torn_file_is_refused(tmp_path: Path, keep: int) -> None:
    file = safetensors_file(tmp_path / "model.safetensors", SHAPES)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=str(file)):
        weights.read_headers(file)


def test_compatible_weights_may_differ_in_dtype_and_tied_head(tmp_path: Path) -> None:
    served = {name: TensorHeader("F32", shape) for name, shape in SHAPES.items()}
    untied = safetensors_file(tmp_path / "untied.safetensors", SHAPES)
    weights.check_compatible(untied, served)
    tied = {name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"}
    weights.check_compatible(safetensors_file(tmp_path / "tied.safetensors", tied), served)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"embed.weight": (4, 2)}, r"miss norm\.weight \(1 such tensors\)"),
        ({**SHAPES, "extra.bias": (2,)}, r"have the unknown extra\.bias \(1 such tensors\)"),
        ({**SHAPES, "norm.weight": (3,)}, r"norm\.weight must have shape \[2\], got \[3\]"),
    ],
)
def test_weights_of_another_model_are_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    served = {name: TensorHeader("BF16", shape) for name, shape in SHAPES.items()}
    file = safetensors_file(tmp_path / "model.safetensors", shapes)
    with pytest.raises(ModelError, match=message):
        weights.check_compatible(file, served)
