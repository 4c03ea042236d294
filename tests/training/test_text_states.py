"""Training on the captions' states that `data encode text=` has left in the shards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from stages import CAPTIONS, PowerCut, small_vae, watched
from test_resume import assert_same_weights, rows
from tiny import SMALLER, compose_tiny

from sdscratch.commands.assembly import make_stage
from sdscratch.commands.train import train
from sdscratch.config import build
from sdscratch.data import BaseDataModule, ShardIndex, write_shards
from sdscratch.data.shapes import write_shapes
from sdscratch.errors import DataError
from sdscratch.interop.diffusers_folder import save_model_folder
from sdscratch.models import new_clip
from sdscratch.prepare.encode.encoding import Encoding
from sdscratch.run_folder import RunFolder
from sdscratch.training import LatentDiffusion

pytestmark = pytest.mark.xdist_group("text_states")  # what is encoded once serves all


class Places(NamedTuple):
    """model: a VAE and a text encoder. other: another text encoder. plain: latents of 32 px. stated: the same, with states."""

    model: Path
    other: Path
    plain: Path
    stated: Path

    def words(self, *latents: Path, text: Path | None = None) -> list[str]:
        """Of a run on a folder of latents, or on several of them in equal shares."""
        sources = ", ".join(f"number_{n}: {{path: {folder}, share: 1}}" for n, folder in enumerate(latents))
        mixture = ["dataset=mixture", f"dataset.sources={{{sources}}}"]
        return [
            *SMALLER,
            "vae=trained",
            f"vae.path={self.model}",
            "text_encoder=trained",
            f"text_encoder.path={text or self.model}",
            *(mixture if len(latents) > 1 else ["dataset=shards", f"dataset.path={latents[0]}"]),
            "~dataset.count",
            "~dataset.val_count",
            "dataset.holdout=0.2",
            "dataset.resolution=32",
            "caption_dropout=0.4",
            "max_steps=6",
        ]


def text_encoder(seed: int):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    return new_clip(CAPTIONS, **sizes, vocab_size=640, max_length=24)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("text_states")
    places = Places(*(root / name for name in Places._fields))
    save_model_folder(places.model, vae=small_vae(), text=text_encoder(0), about={})
    save_model_folder(places.other, text=text_encoder(1), about={})
    write_shapes(root / "scenes", 40, 1, 32, 0)
    for out, text in ((places.plain, None), (places.stated, str(places.model))):
        Encoding(root / "scenes" / "train", out, str(places.model), 32, text=text).run()
    return places


@pytest.fixture
def stage(tmp_path: Path, places: Places) -> Callable[..., tuple[LatentDiffusion, BaseDataModule]]:
    """`stage(latents, ...)`: the stage and its data, as `train` builds them."""

    def make(*latents: Path, text: Path | None = None) -> tuple[LatentDiffusion, BaseDataModule]:
        cfg = compose_tiny(tmp_path / "runs", tmp_path, *places.words(*latents, text=text))
        datamodule = build(cfg.dataset)
        return make_stage(cfg, datamodule, RunFolder(tmp_path / "run")), datamodule

    return make


def test_a_loss_on_stored_states_is_that_on_states_encoded_now_captions_dropped_or_not(stage, places):
    module, data = stage(places.stated)
    for batch, _ in zip(data.train_dataloader(), range(5), strict=False):
        plain = {name: value for name, value in batch.items() if name != "encoder_hidden_states"}
        assert batch["encoder_hidden_states"].shape == (4, 24, 32)
        losses = [float(module.losses(one)["loss"].detach()) for one in (batch, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        other = {**batch, "encoder_hidden_states": -batch["encoder_hidden_states"]}  # it is them that count
        changed = float(module.losses(other)["loss"].detach()) != losses[0]
        assert changed == (not batch["dropped"].all())


def test_every_sample_brings_the_state_of_the_caption_that_was_drawn(stage, places):
    module, data = stage(places.stated)
    samples, wordings = data.train_dataset(), set[str]()
    for position in range(64):
        sample = samples[position]
        expected = module.encoders.text([sample["caption"]])[0]
        torch.testing.assert_close(sample["encoder_hidden_states"].float(), expected, atol=2e-3, rtol=1e-3)
        wordings.add(sample["caption"])
    assert len(wordings) > 40  # of some of the 40 scenes, different captions were drawn


def test_a_run_on_stored_states_is_the_run_that_encodes_its_captions(tmp_path, places):
    runs = [
        train(compose_tiny(tmp_path / out.name, tmp_path, *places.words(out))) for out in (places.stated, places.plain)
    ]
    losses = [[row["train/loss"] for row in run.read_metrics()] for run in runs]
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] != losses[1]


def test_a_run_on_stored_states_that_was_stopped_goes_on_to_the_same_bits(tmp_path, places):
    words = [*places.words(places.stated), "callbacks.checkpoints.every=2"]
    straight = train(compose_tiny(tmp_path / "straight", tmp_path, *words))
    with pytest.raises(PowerCut), watched(cut_after=3):
        train(compose_tiny(tmp_path / "cut", tmp_path, *words))
    resumed = train(compose_tiny(tmp_path / "cut", tmp_path, *words, "resume_from=auto"))
    assert_same_weights(resumed, straight)
    assert rows(resumed) == rows(straight)


def test_states_of_another_text_encoder_are_not_read_and_it_is_said(stage, places, capsys):
    module, data = stage(places.stated, text=places.other)
    assert "encoder_hidden_states" not in next(iter(data.train_dataloader()))
    said = capsys.readouterr().err
    prints = [ShardIndex.open(places.stated).made_by["text"], module.encoders.text.fingerprint]
    assert said.startswith(f"warning: {places.stated} holds captions' states by another text encoder ({prints[0]})")
    assert prints[1] in said and len(said.splitlines()) == 1


def test_a_mixture_uses_states_where_all_its_sources_hold_them(stage, places):
    for second, held in ((places.stated, True), (places.plain, False)):
        _, data = stage(places.stated, second)
        for loader in (data.train_dataloader(), data.val_dataloader()):
            assert ("encoder_hidden_states" in next(iter(loader))) == held


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-4], "its captions' states cannot be read"),
        (lambda data: data[:128] + b"\xff\x7f" * (len(data) // 2 - 64), "its captions' states hold NaN"),
        (lambda data: data.replace(b"24, 32", b"48, 16"), "its captions' states are float16"),
        (lambda data: None, "it has no captions' states"),
    ],
)
def test_states_that_cannot_be_used_make_a_bad_sample(stage, places, tmp_path, damage, said):
    index = ShardIndex.open(places.stated)
    samples = [(index.key(n), index.read(n)) for n in range(len(index))]
    for _, members in samples:
        members["text.npy"] = damage(members["text.npy"])
    kept = [(key, {name: data for name, data in members.items() if data}) for key, members in samples]
    shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
    write_shards(tmp_path / "damaged", kept, index.made_by)
    _, data = stage(tmp_path / "damaged")
    with pytest.raises(DataError, match=f"is a bad sample: {said}"):
        next(iter(data.train_dataloader()))
