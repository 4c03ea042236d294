"""A CLIP looks at pictures as it was taught to, and its score knows whose caption is whose."""

import json
import shutil

import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPModel

from sdscratch.errors import DataError
from sdscratch.evaluation.clip_network import ClipNetwork
from sdscratch.evaluation.part_tables import retrieval_table
from sdscratch.evaluation.picture_tables import caption_table, clip_scores
from sdscratch.evaluation.prompt_suites import Prompt


@pytest.fixture(scope="module")
def published(learnt_clip, tmp_path_factory):
    """The same network as transformers' users publish it: one folder, with a description of its pictures."""
    folder = shutil.copytree(learnt_clip.folder / "clip", tmp_path_factory.mktemp("published") / "clip")
    shutil.copytree(learnt_clip.folder / "tokenizer", folder, dirs_exist_ok=True)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(image_mean=[0.48, 0.45, 0.4], image_std=[0.26, 0.27, 0.25], **sizes).save_pretrained(folder)
    return folder


def test_a_published_clip_sees_what_transformers_lets_it_see(published, learnt_clip):
    network, processor = ClipNetwork(published), CLIPImageProcessorPil.from_pretrained(published)
    pixels = processor(images=learnt_clip.pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        wanted = CLIPModel.from_pretrained(published).get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(network.features(learnt_clip.pictures), wanted, rtol=1e-4, atol=1e-5)


def test_the_clip_score_of_shuffled_captions_falls(learnt_clip):
    network = ClipNetwork(learnt_clip.folder)
    images, texts = network.features(learnt_clip.pictures), network.captions(learnt_clip.captions)
    own = clip_scores(images, texts).mean()
    for turned in range(1, len(texts)):
        assert clip_scores(images, texts.roll(turned, dims=0)).mean() < 0.6 * own
    prompts = [Prompt(text, "even" if i % 2 == 0 else "odd") for i, text in enumerate(learnt_clip.captions)]
    table = caption_table(images, texts, prompts, {}, replicates=10)
    found = {(row.measure, row.group): row for row in table.rows}
    assert found["CLIP score", "all"].value == pytest.approx(float(own))
    assert found["CLIP score, prompts shuffled", "all"].high < found["CLIP score", "all"].low
    assert found["CLIP score", "odd"].count == 4


def test_recall_is_whole_where_every_pair_is_known_and_chance_where_pictures_are_turned(learnt_clip):
    network = ClipNetwork(learnt_clip.folder)
    images = network.features(learnt_clip.pictures)
    right = recalls(retrieval_table(network, images, learnt_clip.captions, {}, 0))
    wrong = recalls(retrieval_table(network, images.roll(1, dims=0), learnt_clip.captions, {}, 0))
    assert right["R@1"] == right["R@5"] == 1 and wrong["R@1"] == 0
    assert right["R@1 by chance"] == 1 / 8


def test_a_picture_with_the_same_caption_as_another_is_found_by_it(learnt_clip):
    network = ClipNetwork(learnt_clip.folder)
    images = network.features(learnt_clip.pictures[:1] * 4)
    assert recalls(retrieval_table(network, images, learnt_clip.captions[:1] * 4, {}, 0))["R@1"] == 1


def recalls(table):
    return {row.measure: row.value for row in table.rows}


def test_our_own_clip_is_found_in_a_run_and_in_a_quickstarts(learnt_clip, tmp_path):
    run = shutil.copytree(learnt_clip.folder, tmp_path / "quickstart/clip/model").parent
    wanted = ClipNetwork(learnt_clip.folder).fingerprint
    assert ClipNetwork(run).fingerprint == ClipNetwork(run.parent).fingerprint == wanted


def test_what_is_no_clip_is_refused_in_one_line(published, tmp_path):
    damaged = shutil.copytree(published, tmp_path / "damaged")
    (damaged / "preprocessor_config.json").write_text(json.dumps({"image_mean": "grey"}))
    (tmp_path / "empty").mkdir()
    for path, said in (
        (damaged, "preprocessor_config.json"),
        (tmp_path / "empty", "holds no CLIP"),
        ("no/clip", "no CLIP"),
    ):
        with pytest.raises(DataError) as refusal:
            ClipNetwork(path)
        assert said in str(refusal.value) and "\n" not in str(refusal.value)
