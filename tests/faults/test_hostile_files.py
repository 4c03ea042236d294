"""Nothing that is read can run code: hostile files through every entry point that reads files, no canary.

A payload that is refused is refused in one sentence, as a damaged file is.
"""

from __future__ import annotations

import ast
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from payloads import FORMATS, as_npy, as_old_torch, as_pickle, as_torch, gadgets

import sdscratch
from sdscratch.cli import main
from sdscratch.data.index import ShardIndex
from sdscratch.data.latents import unpack
from sdscratch.errors import SdscratchError
from sdscratch.models import load_text_encoder, load_vae
from sdscratch.models.tokenizer import load_tokenizer
from sdscratch.pipeline import TextToImage
from sdscratch.run_folder import RunFolder

NAMES = list(gadgets(Path("canary")))


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Iterator[Path]:
    """What the payload would make; it must not be there at the end."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code was executed"


@pytest.mark.parametrize("name", NAMES)
def test_the_payloads_would_work_on_a_careless_reader(tmp_path, name):
    canary = tmp_path / "canary"
    payload = as_old_torch(gadgets(canary)[name])
    with suppress(Exception):  # what comes after the call is of no interest
        torch.load(io.BytesIO(payload), weights_only=False)
    assert canary.exists()


def assert_refused(read: Callable[[], Any]) -> None:
    """It raises what the command line prints as one line."""
    with pytest.raises(SdscratchError) as caught:
        read()
    assert "Traceback" not in str(caught.value) and len(str(caught.value)) < 1000


# Checkpoints


def plant_checkpoint(run: RunFolder, content: bytes) -> None:
    """As the newest one, with a side-car that vouches for it."""
    path = run.checkpoint_path(99)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    sidecar = {"step": 99, "samples_seen": 99 * 4, "sha256": sha256(content).hexdigest(), "size": len(content)}
    path.with_name(path.name + ".json").write_text(json.dumps(sidecar))


@pytest.mark.parametrize("form", ["pickle", "torch", "old torch", "zip"])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_tensors_and_plain_values_or_nothing(tmp_path, canary, name, form):
    run = RunFolder(tmp_path / "run")
    plant_checkpoint(run, FORMATS[form](gadgets(canary)[name]))
    checkpoint = run.newest_intact_checkpoint()
    assert_refused(checkpoint.load)
    if form == "torch":
        assert_refused(lambda: checkpoint.load(mapped=True))


@pytest.fixture(scope="module")
def borrowed(tiny_run, tmp_path_factory) -> RunFolder:
    """The finished tiny run, to be spoilt; its last checkpoint is a hostile one's place."""
    path = tmp_path_factory.mktemp("borrowed") / "tiny"
    shutil.copytree(tiny_run.path, path)
    return RunFolder(path)


@pytest.mark.parametrize("name", ["os.system", "deep inside"])
@pytest.mark.parametrize(
    "words",
    [
        ["resume", "{run}", "max_steps=120"],
        ["train", "experiment=tiny", "name=other", "max_steps=1", "paths.runs=.", "init_from={run}"],
        ["sample", "model={run}", "prompt=a circle", "weights=raw", "out=pictures"],
        ["sample", "model={run}/checkpoints/step_00000099.ckpt", "prompt=a circle", "out=pictures"],
        ["checkpoints", "{run}", "verify"],
    ],
    ids=lambda words: words[0],
)
def test_a_hostile_checkpoint_is_one_line_for_every_command_that_reads_it(
    borrowed, tiny_data, canary, capsys, words, name
):
    plant_checkpoint(borrowed, as_torch(gadgets(canary)[name]))
    words = [word.format(run=borrowed.path) for word in words]
    code = main([*words, f"paths.data={tiny_data}"] if words[0] == "train" else words)
    said = capsys.readouterr().err
    assert code == (0 if words[0] == "checkpoints" else 2), said
    assert said.count("sdscratch: ") == (0 if words[0] == "checkpoints" else 1)
    assert "Traceback" not in said


# Model folders

WEIGHTS = [
    ("unet/diffusion_pytorch_model.safetensors", TextToImage.from_pretrained),
    ("vae/diffusion_pytorch_model.safetensors", TextToImage.from_pretrained),
    ("text_encoder/model.safetensors", TextToImage.from_pretrained),
    ("vae/diffusion_pytorch_model.safetensors", lambda model: load_vae(str(model))),
    ("text_encoder/model.safetensors", lambda model: load_text_encoder([], str(model))),
]
PICKLED = {
    "diffusion_pytorch_model.safetensors": "diffusion_pytorch_model.bin",
    "model.safetensors": "pytorch_model.bin",
}


@pytest.fixture
def model(tiny_run, tmp_path) -> Path:
    """A whole model folder, to be spoilt."""
    return Path(shutil.copytree(tiny_run.model_folder, tmp_path / "model"))


@pytest.mark.parametrize(("file", "read"), WEIGHTS)
@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("place", ["under the right name", "as pickled weights"])
def test_weights_are_safetensors_or_nothing(model, canary, file, read, form, place):
    path = model / file
    path.unlink()
    target = path if place == "under the right name" else path.with_name(PICKLED[path.name])
    target.write_bytes(FORMATS[form](gadgets(canary)["os.system"]))
    assert_refused(lambda: read(model))


CODE = "import pathlib\npathlib.Path({canary!r}).touch()\nclass Any:\n    pass\n"
SETTINGS = [
    ("unet/config.json", {"_class_name": "os.system", "auto_map": {"AutoModel": "evil.Any"}}),
    ("vae/config.json", {"_class_name": "evil.Any", "auto_map": {"AutoModel": "evil.Any"}}),
    ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Any", "AutoConfig": "evil.Any"}}),
    ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Any", None]}, "tokenizer_class": "Any"}),
    ("scheduler/scheduler_config.json", {"_class_name": "os.system", "auto_map": {"Scheduler": "evil.Any"}}),
    ("model_index.json", {"_class_name": "evil", "unet": ["evil", "Any"], "vae": ["os", "system"]}),
    ("sdscratch.json", {"sampling": {"sampler": "os.system", "__class__": "evil"}}),
]


@pytest.mark.parametrize(("file", "settings"), SETTINGS, ids=lambda value: value if isinstance(value, str) else "")
def test_settings_of_a_model_folder_load_no_code(model, canary, file, settings):
    path = model / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    for folder in (model, path.parent):
        (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
    try:
        TextToImage.from_pretrained(model)
    except SdscratchError as error:
        assert "Traceback" not in str(error)


@pytest.mark.parametrize("name", ["tokenizer.pkl", "tokenizer.bin", "tokenizer.json", "vocab.json"])
def test_a_tokenizer_is_json_or_nothing(model, canary, name):
    folder = model / "tokenizer"
    (folder / "vocab.json").unlink(), (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(as_pickle(gadgets(canary)["os.system"]))
    assert_refused(lambda: load_tokenizer(folder))


# Shards


def shards(folder: Path, members: dict[str, bytes]) -> Path:
    """A folder of one tar with one sample."""
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for suffix, data in members.items():
            info = tarfile.TarInfo(f"000000.{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder


PICKLES = ["pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "ten", "cbor", "mp", "index", "py", "txt", "json", "jpg"]


@pytest.mark.parametrize("suffix", PICKLES)
def test_members_of_a_shard_are_bytes_of_known_kinds(tmp_path, canary, suffix):
    payload = as_pickle(gadgets(canary)["os.system"], protocol=4)
    index = ShardIndex.open(shards(tmp_path / "shards", {"png": b"x", suffix: payload}), cache=tmp_path / "cache")
    from sdscratch.data.captions import captions_of, record_of
    from sdscratch.data.images import image_member, open_image

    members = index.read(0)
    assert set(members) <= {"png", "txt", "json", "jpg"}
    captions_of(members, record_of(members))
    assert_refused(lambda: open_image(image_member(members)))


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_numbers_or_nothing(canary, name):
    assert_refused(lambda: unpack(as_npy(gadgets(canary)[name])))
    assert_refused(lambda: unpack(as_pickle(gadgets(canary)[name])))


@pytest.mark.parametrize("form", ["npy", "pickle"])
def test_a_planted_index_of_byte_offsets_is_not_believed(tmp_path, canary, form):
    folder = shards(tmp_path / "shards", {"png": b"x", "txt": b"a caption"})
    ShardIndex.open(folder, cache=tmp_path / "cache")
    (kept,) = folder.glob("index-*.npy")
    kept.write_bytes(FORMATS[form](gadgets(canary)["os.system"]))
    assert ShardIndex.open(folder, cache=tmp_path / "cache").read(0)["txt"] == b"a caption"


@pytest.mark.parametrize(
    "name", ["pipe:touch canary", "../canary", "/tmp/canary", "00000.tar|touch canary", "$(touch canary)"]
)
def test_names_in_a_manifest_are_names_of_files(tmp_path, canary, name):
    folder = shards(tmp_path / "shards", {"png": b"x", "txt": b"a caption"})
    shard = {"name": name, "size": 10240, "sha256": "0" * 64, "samples": 1}
    manifest = {"format": 1, "total": 1, "kind": "images", "made_by": {}, "shards": [shard]}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sources": {}, "licences": {}}))
    assert_refused(lambda: ShardIndex.open(folder, cache=tmp_path / "cache"))


@pytest.mark.parametrize(
    "address", ["pipe:touch canary", "pipe:touch canary |", "http://127.0.0.1:9/x.tar", "file:///etc"]
)
def test_a_path_of_data_is_a_folder_never_a_command(tmp_path, canary, address):
    assert_refused(lambda: ShardIndex.open(address, cache=tmp_path / "cache"))


# The source itself

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("os", "system"), ("os", "popen"),
    ("yaml", "load"), ("yaml", "unsafe_load"), ("joblib", "load"), ("torch", "hub"), ("shelve", "open"),
}  # fmt: skip


def findings(source: str) -> list[str]:
    """Calls in Python source that could run code out of a file, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called, keywords = node.func, {keyword.arg: keyword.value for keyword in node.keywords}
        if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: {called.id}(")
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            name = (called.value.id, called.attr)
            if name in FORBIDDEN_ATTRIBUTES:
                found.append(f"{node.lineno}: {'.'.join(name)}(")
            if name == ("torch", "load") and not _is_true(keywords.get("weights_only")):
                found.append(f"{node.lineno}: torch.load( without weights_only=True")
            if name in (("np", "load"), ("numpy", "load")) and not _is_false(keywords.get("allow_pickle")):
                found.append(f"{node.lineno}: np.load( without allow_pickle=False")
        for name in ("trust_remote_code", "allow_pickle", "shell"):
            if name in keywords and not _is_false(keywords[name]):
                found.append(f"{node.lineno}: {name}=")
        if "weights_only" in keywords and not _is_true(keywords["weights_only"]):
            found.append(f"{node.lineno}: weights_only=")
    return found


def _is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def _is_false(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def test_no_line_of_the_package_could_run_code_out_of_a_file():
    package = Path(sdscratch.__file__).parent
    files = sorted(package.rglob("*.py"))
    assert len(files) > 60
    assert [f"{path.relative_to(package)}:{line}" for path in files for line in findings(path.read_text())] == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, weights_only=False)",
        "torch.load(path)",
        "pickle.load(file)",
        "pickle.loads(data)",
        "eval(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "trainer.fit(module, weights_only=False)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_such_a_line_would_be_found(line):
    assert findings(line) and not findings("model.eval(); torch.load(path, weights_only=True)")


def test_what_training_writes_is_read_back_without_pickle(tiny_run):
    for checkpoint in tiny_run.checkpoints():
        assert checkpoint.load()["global_step"] == checkpoint.step
    for path in tiny_run.path.rglob("*"):
        assert path.suffix not in (".pt", ".pth", ".bin", ".pkl", ".pickle")
