"""CLIP: pictures and captions that belong together are pulled together, and recall says how well that went."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree, rmtree
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from stages import CAPTIONS, clip, fit, image_batch
from tiny import BARE
from transformers import CLIPTextModel, CLIPTokenizer

from sdscratch.commands.train import train
from sdscratch.config import compose
from sdscratch.errors import ConfigError, DataError
from sdscratch.models.encoders import TextEncoder
from sdscratch.models.tokenizer import load_tokenizer
from sdscratch.run_folder import RunFolder
from sdscratch.training import Clip
from sdscratch.training.clip import MAX_LOGIT_SCALE


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_data) -> RunFolder:
    """20 steps of a tiny CLIP on drawn scenes."""
    length = ["max_steps=20", "optimizer.lr=2.0e-3", "lr_schedule.warmup_steps=2"]
    rest = ["callbacks.metrics.every=1", "callbacks.plots=null", "callbacks.previews.every=20", "stage.ema_decay=0.9"]
    return train(tiny_clip(tmp_path_factory.mktemp("runs"), tiny_data, *length, *rest))


def tiny_clip(runs: Path, data: Path, *overrides: str, count: int = 64) -> DictConfig:
    """CLIP on `count` drawn scenes."""
    scenes = ["dataset=shapes", f"dataset.count={count}", "dataset.val_count=16", "dataset.resolution=32"]
    place = [f"paths.runs={runs}", f"paths.data={data}", "name=clip", "threads=1", "trainer=cpu", "logger=none"]
    stage = ["stage=clip", "text_encoder=clip_tiny", "global_batch_size=16"]
    return compose("train", [*stage, *scenes, *place, *overrides])


@pytest.mark.parametrize("of_it", ["", "model", "checkpoints/step_00000020.ckpt"])
def test_weights_from_elsewhere_come_with_the_tokenizer_that_they_were_learnt_with(run, tmp_path, tiny_data, of_it):
    """One learnt from other captions would give other numbers to the same words."""
    other = ["name=other", "max_steps=1", *BARE]
    own = train(tiny_clip(tmp_path / "own", tiny_data, *other, count=8))
    taken = train(tiny_clip(tmp_path, tiny_data, *other, f"init_from={run.path / of_it}", count=8))
    source, learnt, used = (load_tokenizer(r.path / "tokenizer").get_vocab() for r in (run, own, taken))
    assert used == source != learnt
    assert load_tokenizer(taken.model_folder / "tokenizer").get_vocab() == source


def test_weights_without_their_tokenizer_are_refused(tmp_path, tiny_data, run):
    lost = copytree(run.model_folder, tmp_path / "lost")
    rmtree(lost / "tokenizer")
    with pytest.raises(DataError, match="has no tokenizer: expected .* A new text encoder would learn another one"):
        train(tiny_clip(tmp_path, tiny_data, "max_steps=1", f"init_from={lost}"))


def test_the_loss_falls_and_recall_is_measured(run):
    rows = run.read_metrics()
    losses = [row["train/loss"] for row in rows]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert 0 <= rows[-1]["val/r_at_1_chance"] <= rows[-1]["val/r_at_1"] <= 1
    assert run.objective()["metric"] == "1 - val/r_at_1"
    assert run.objective()["value"] == 1 - rows[-1]["val/r_at_1"]
    assert (run.path / "samples" / "step_00000020" / "ema.png").exists()


def test_the_loss_of_distinct_captions_is_transformers_own():
    module, batch = clip(), image_batch()
    tokens = module.text.tokens(batch["captions"])
    expected = module.network(input_ids=tokens, pixel_values=batch["images"], return_loss=True).loss
    assert module.losses(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_equal_captions_share_the_target():
    module = clip()
    batch = image_batch([CAPTIONS[0], CAPTIONS[1], CAPTIONS[0].upper(), CAPTIONS[2]])  # equal token for token
    tokens = module.text.tokens(batch["captions"])
    logits = module.network(input_ids=tokens, pixel_values=batch["images"]).logits_per_image
    target = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]])
    expected = -(target * (F.log_softmax(logits, 1) + F.log_softmax(logits, 0))).sum() / 8
    assert module.losses(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_temperature_falls_below_a_hundredth_in_the_network_or_its_average():
    module = clip()
    with torch.no_grad():
        module.ema.network.logit_scale.fill_(4.0)
        module.network.logit_scale.fill_(10.0)
    fit(module, image_batch())
    assert float(module.network.logit_scale) == pytest.approx(MAX_LOGIT_SCALE)
    assert float(module.ema.network.logit_scale) == pytest.approx(0.1 * 4.0 + 0.9 * MAX_LOGIT_SCALE)
    assert float(module.losses(image_batch())["temperature"]) == pytest.approx(0.01)


class Embedder:
    """Stands in for a network: gives each picture and each caption the vector it is told to, in their order."""

    def __init__(self, images: torch.Tensor, texts: torch.Tensor) -> None:
        self.images, self.texts = iter(images.split(4)), iter(texts.split(4))

    def get_image_features(self, pixel_values):
        return SimpleNamespace(pooler_output=next(self.images))

    def get_text_features(self, input_ids):
        return SimpleNamespace(pooler_output=next(self.texts))


def batches(count: int) -> list:
    words = ["red", "blue", "green", "tan", "pink", "top", "left", "ring"]
    captions = [f"{words[i % 8]} {words[i // 8 % 8]} {words[i // 64 % 8]}" for i in range(count)]
    return [image_batch(captions[first : first + 4], first) for first in range(0, count, 4)]


def test_recall_of_a_perfect_embedding_is_1():
    vectors = torch.eye(32)
    measures = clip().evaluate(Embedder(vectors, 2 * vectors), batches(32))
    assert measures["val/r_at_1"] == measures["val/r_at_1_image_to_text"] == measures["val/r_at_1_text_to_image"] == 1
    assert measures["val/r_at_1_chance"] == 1 / 32


def test_recall_of_a_wrong_embedding_is_0_in_the_direction_that_is_wrong():
    vectors = torch.eye(32)
    assert clip().evaluate(Embedder(vectors, vectors.roll(1, 0)), batches(32))["val/r_at_1"] == 0
    texts = vectors.clone()
    texts[0] = 0.9 * vectors[0] + vectors[1]  # the caption of 0 looks more like picture 1, which has a better one
    measures = clip().evaluate(Embedder(vectors, texts), batches(32))
    assert measures["val/r_at_1_text_to_image"] == 31 / 32
    assert measures["val/r_at_1_image_to_text"] == 1


def test_recall_of_a_random_embedding_is_chance():
    torch.manual_seed(0)
    count = 512
    measures = clip().evaluate(Embedder(torch.randn(count, 32), torch.randn(count, 32)), batches(count))
    assert measures["val/r_at_1_chance"] == 1 / count
    assert measures["val/r_at_1"] < 6 / count


def test_a_caption_that_equals_the_right_one_is_right():
    repeated = [image_batch([CAPTIONS[0]] * 4), image_batch([CAPTIONS[1]] * 4, first=4)]
    vectors = torch.eye(2).repeat_interleave(4, 0)
    measures = clip().evaluate(Embedder(vectors, vectors), repeated)
    assert measures["val/r_at_1"] == 1
    assert measures["val/r_at_1_chance"] == 0.5


def test_the_saved_text_tower_loads_in_transformers_and_gives_the_states_of_the_average(run):
    model = CLIPTextModel.from_pretrained(run.model_folder / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(run.model_folder / "tokenizer")
    average = TextEncoder(model, tokenizer)
    module = clip()
    network = type(module.network)(module.network.config.from_pretrained(run.model_folder / "clip")).eval()
    network.load_state_dict(run.newest_intact_checkpoint().load()["ema"]["weights"])
    ids = tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (4, 24)
    with torch.no_grad():
        expected = network.text_model(ids).last_hidden_state
    assert torch.equal(average(CAPTIONS), expected)


def test_a_text_tower_alone_cannot_be_trained_here():
    text = clip().text
    with pytest.raises(ConfigError, match="no image tower"):
        Clip(TextEncoder(text.model, text.tokenizer), optimizer=None, lr_schedule=None)
