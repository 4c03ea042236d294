"""A mixture loads like a single source: the same samples and noise on any ranks and workers, from any step on."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from test_datamodule import Ranked, by_position, equal, to_timesteps
from tiny_shards import image_samples, latent_samples

from sdscratch.data import DataModule, ImageCollate, LatentCollate, MixtureDataModule
from sdscratch.data.shards import write_shards
from sdscratch.errors import ConfigError, DataError

BATCH = 10
SHARES = {"large": 0.5, "small": 0.3, "rare": 0.2}
SIZES = {"large": 23, "small": 9, "rare": 9}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Latents of three sources; two of them are equal to the last byte."""
    root = tmp_path_factory.mktemp("mixture")
    for name, size in SIZES.items():
        write_shards(root / name, latent_samples(size), {"vae": "abc", "resolution": 16}, shard_size=4)
    return {name: str(root / name) for name in SIZES}


def sources(folders: dict[str, str], **changes) -> dict:
    found = {name: {"path": path, "share": SHARES[name]} for name, path in folders.items()}
    return {name: settings | changes.get(name, {}) for name, settings in found.items()}


def module(given: dict, **options) -> MixtureDataModule:
    made = MixtureDataModule(
        given, **({"resolution": 16, "global_batch_size": BATCH, "seed": 5, "flip": True} | options)
    )
    made.collate = LatentCollate(seed=5, timesteps=to_timesteps, caption_dropout=0.3, latent_shape=(4, 2, 2))
    return made


def run(given, steps=range(2, 6), world=1, accumulate=1, skipped=(), **options) -> dict[int, list]:
    batches = []
    for rank in range(world):
        made = module(given, **options)
        made.trainer, made.start_step, made.skipped = Ranked(rank, world, accumulate), steps.start, skipped
        batches += islice(made.train_dataloader(), len(steps) * accumulate)
    return by_position(batches)


@pytest.mark.filterwarnings("ignore:.*worker processes in total:UserWarning")
def test_workers_ranks_accumulation_and_resumes_change_no_sample_and_no_noise(folders):
    given = sources(folders)
    expected = run(given)
    assert sorted(expected) == list(range(2 * BATCH, 6 * BATCH))
    assert equal(run(given, world=2, num_workers=1), expected)
    assert equal(run(given, num_workers=2, accumulate=5), expected)
    assert equal(run(given, range(2, 3)) | run(given, range(3, 6), world=5), expected)
    assert not equal(run(given, seed=6), expected)


def test_skipped_steps_are_passed_over(folders):
    found = run(sources(folders), range(0, 4), skipped=[[1, 3]])
    expected = run(sources(folders), range(0, 1)) | run(sources(folders), range(3, 6))
    assert equal(found, expected)


def test_batches_hold_every_source_in_its_share_and_name_it(folders):
    for batch in islice(module(sources(folders)).train_dataloader(), 7):
        assert Counter(batch["source"]) == {"large": 5, "small": 3, "rare": 2}


def test_each_source_goes_through_its_own_epochs_in_an_order_of_its_own(folders):
    made = module(sources(folders))
    keys: dict[str, list[str]] = {name: [] for name in SIZES}
    for key in made.keys(range(40 * BATCH)):
        name, _, sample = key.partition("/")
        keys[name].append(sample)
    for name, size in SIZES.items():
        for epoch in range(len(keys[name]) // size):
            assert len(set(keys[name][epoch * size : (epoch + 1) * size])) == size
    assert set(keys["small"]) == set(keys["rare"]) and keys["small"][:9] != keys["rare"][:9]


def test_a_sample_is_named_by_the_guard_as_it_was_read(folders):
    made = module(sources(folders))
    dataset = made.train_dataset()
    samples = [dataset[position] for position in range(30, 60)]
    assert made.keys(range(30, 60)) == [f"{sample['source']}/{sample['key']}" for sample in samples]
    assert [sample["position"] for sample in samples] == list(range(30, 60))


def test_a_bad_sample_is_replaced_from_its_own_source_and_named_with_it(folders, tmp_path):
    good = dict(latent_samples(9))
    bad = {**good, "000004": good["000004"] | {"latent.npy": b"no"}}
    write_shards(tmp_path / "bad", bad.items(), {"vae": "abc", "resolution": 16})
    made = module(sources(folders, rare={"path": str(tmp_path / "bad")}), on_bad="quarantine")
    batches = list(islice(made.train_dataloader(), 9))
    assert {name for batch in batches for name in batch["quarantined"]} == {"rare/000004"}
    assert all(Counter(batch["source"])["rare"] == 2 for batch in batches)


def test_replay_gives_older_sources_their_part_of_every_batch(folders):
    given = sources(folders)
    old = {name: given.pop(name) | {"share": 7} for name in ("small", "rare")}
    made = module(given, replay={"share": 0.4, "sources": old})
    for batch in islice(made.train_dataloader(), 5):
        assert Counter(batch["source"]) == {"large": 6, "small": 2, "rare": 2}
    none = module(given, replay={"share": 0.0, "sources": old}, holdout=0.3)
    assert {source for batch in islice(none.train_dataloader(), 9) for source in batch["source"]} == {"large"}
    assert none.source_weights == {"large": 1.0, "small": 0.0, "rare": 0.0}  # measured, and judged by its own
    assert none.fingerprint == module(given, holdout=0.3).fingerprint != made.fingerprint


def test_the_loss_over_all_is_that_of_the_sources_in_their_shares_whatever_is_replayed(folders):
    given = sources(folders)
    old = {"rare": given.pop("rare")}
    weights = module(given, replay={"share": 0.4, "sources": old}, holdout=0.3).source_weights
    assert weights["large"] / weights["small"] == pytest.approx(5 / 3) and weights["rare"] == 0
    given["small"]["share"] = 0  # measured, never trained on
    assert module(given, holdout=0.3).source_weights == {"large": 1.0, "small": 0.0}


def test_what_is_not_replayed_need_not_be_there(folders, capsys):
    given = sources(folders)
    old = {"rare": given.pop("rare"), "gone": {"path": "nowhere", "share": 1}}
    made = module(given, replay={"share": 0.0, "sources": old}, holdout=0.3)
    made.setup()
    assert list(made.source_weights) == ["large", "small", "rare"]
    assert capsys.readouterr().err == "warning: nowhere is not there: gone is not measured\n"
    with pytest.raises(DataError, match="source gone: no shards in nowhere"):
        module(given, replay={"share": 0.1, "sources": old}).setup()


def test_the_fingerprint_tells_shares_names_and_data_apart_and_not_units(folders):
    given = sources(folders)
    print_of = module(given).fingerprint
    assert module({name: s | {"share": 10 * s["share"]} for name, s in given.items()}).fingerprint == print_of
    others = [
        sources(folders, large={"share": 0.6}),
        sources(folders, large={"path": folders["small"]}),
        {("other" if name == "large" else name): settings for name, settings in given.items()},
    ]
    assert len({print_of, *(module(other).fingerprint for other in others)}) == 4


def test_what_a_model_says_of_its_data_has_a_part_for_each_source(folders):
    about = module(sources(folders)).about()
    assert about["samples"] == 41 and {name: part["share"] for name, part in about["sources"].items()} == SHARES
    assert about["sources"]["small"]["made_by"]["vae"] == "abc"


# Held out


def validate(made, world=1) -> list[dict]:
    """The held-out rows of all ranks: source, key-like caption, noise and timestep."""
    rows = []
    for rank in range(world):
        made.trainer = Ranked(rank, world, 1)
        for batch in made.val_dataloader():
            names = ("source", "captions", "positions", "timesteps", "noise", "latents")
            rows += [
                dict(zip(names, values, strict=True)) for values in zip(*(batch[name] for name in names), strict=True)
            ]
    return sorted(rows, key=lambda row: (row["source"], int(row["positions"])))


def same(a: list[dict], b: list[dict], *names: str) -> bool:
    return len(a) == len(b) and all(torch.equal(x[n], y[n]) for x, y in zip(a, b, strict=True) for n in names)


def test_the_validation_set_is_spread_evenly_whatever_the_shares_and_ranks(folders):
    rows = validate(module(sources(folders), holdout=0.4, val_samples=7))
    assert Counter(row["source"] for row in rows) == {"large": 3, "small": 2, "rare": 2}
    for world in (2, 5):
        again = validate(module(sources(folders), holdout=0.4, val_samples=7, seed=9), world)
        assert same(again, rows, "noise", "timesteps", "latents")
    few = validate(module(sources(folders), holdout=0.4, val_samples=1))
    assert Counter(row["source"] for row in few) == {"large": 1, "small": 1, "rare": 1}
    every = validate(module(sources(folders), holdout=0.4, val_samples=1000))
    held_out = {row["captions"].split()[0] for row in every if row["source"] == "large"}
    trained = {
        int(key.partition("/")[2]) for key in module(sources(folders), holdout=0.4).keys(range(300)) if "large" in key
    }
    assert held_out and not {int(number) for number in held_out} & trained


def test_a_source_is_measured_the_same_way_in_any_company(folders):
    mixed = [row for row in validate(module(sources(folders), holdout=0.4, val_samples=9)) if row["source"] == "large"]
    alone = DataModule(folders["large"], 16, BATCH, seed=0, holdout=0.4, val_samples=3)
    alone.collate = LatentCollate(seed=1, timesteps=to_timesteps)
    assert [int(row["timesteps"]) for row in mixed] == [166, 500, 833]
    assert same(validate(alone), mixed, "noise", "timesteps", "latents")


def test_one_source_may_have_held_out_shards_of_its_own_and_none_needs_any(folders, tmp_path):
    write_shards(tmp_path / "val", latent_samples(3), {"vae": "abc", "resolution": 16})
    given = sources(folders, rare={"val_path": str(tmp_path / "val")})
    assert module(given).source_weights == {}  # one is nothing to tell apart
    assert Counter(row["source"] for row in validate(module(given))) == {"rare": 3}
    assert module(sources(folders)).val_dataloader() == []
    both = module(given, holdout=0.4)
    assert list(both.source_weights) == ["large", "small", "rare"]
    assert Counter(row["source"] for row in validate(both))["rare"] == 3


# What does not fit


def test_sources_that_do_not_fit_together_are_named(folders, tmp_path):
    write_shards(tmp_path / "images", image_samples(5), {})
    with pytest.raises(DataError, match="source rare: the kind of its shards .* is images, but latents in large"):
        module(sources(folders, rare={"path": str(tmp_path / "images")})).setup()
    write_shards(tmp_path / "other", latent_samples(5), {"vae": "def", "resolution": 16})
    for changes in ({"path": str(tmp_path / "other")}, {"val_path": str(tmp_path / "other")}):
        with pytest.raises(DataError, match="source small: the VAE of its latents .* is def, but abc in large"):
            module(sources(folders, small=changes)).setup()
    write_shards(tmp_path / "finer", latent_samples(5), {"vae": "abc", "resolution": 32})
    with pytest.raises(DataError, match="source small: .* latents of 32 px, but dataset.resolution is 16"):
        module(sources(folders, small={"path": str(tmp_path / "finer")})).setup()
    with pytest.raises(DataError, match="source rare: no shards in nowhere"):
        module(sources(folders, rare={"path": "nowhere"})).setup()
    with pytest.raises(ConfigError, match="source small: holdout=0.0001 .* leaves none for validation"):
        module(sources(folders, large={"val_path": folders["large"]}), holdout=0.0001).setup()
    with pytest.raises(DataError, match="source large: .* another VAE"):
        module(sources(folders)).require_vae("other")


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({}, {}, "dataset.sources gives no source a share"),
        ({"a": {"path": "x", "share": 0}}, {}, "dataset.sources gives no source a share"),
        ({"a": {"path": "x", "share": -1}}, {}, "dataset.sources.a.share is -1: expected a number of at least 0"),
        ({"a": {"path": "x", "share": float("nan")}}, {}, "dataset.sources.a.share is nan"),
        ({"a": {"path": "x", "share": "1e-4"}}, {}, "dataset.sources.a.share is '1e-4'"),
        ({"a": {"path": "x"}}, {}, "dataset.sources.a is .*: expected path, share"),
        ({"a": {"path": "x", "share": 1, "pth": 1}}, {}, "dataset.sources.a is .*: expected path, share"),
        ({"a": {"path": 3, "share": 1}}, {}, "dataset.sources.a is .*: expected folders"),
        ({"a/b": {"path": "x", "share": 1}}, {}, "has a source 'a/b': expected a name"),
        ({"a": {"path": "x", "share": 1}}, {"replay": {"share": 1.0}}, "dataset.replay.share is 1.0"),
        (
            {"a": {"path": "x", "share": 1}},
            {"replay": {"share": 0.1}},
            "dataset.replay.sources gives no source a share",
        ),
        (
            {"a": {"path": "x", "share": 1}},
            {"replay": {"shar": 0.1}},
            "dataset.replay is .*'shar': 0.1.*: expected share",
        ),
        ({"a": {"path": "x", "share": 1}}, {"replay": {"sources": "x"}}, "dataset.replay is .*: expected share"),
        (
            {"a": {"path": "x", "share": 1}},
            {"replay": {"share": 0.1, "sources": {"a": {"path": "y", "share": 1}}}},
            "dataset.replay.sources names a, as does dataset.sources",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_anything_is_opened(given, options, message):
    with pytest.raises(ConfigError, match=message):
        module(given, **options)


def test_images_mix_as_well(tmp_path):
    for name, count in (("a", 8), ("b", 5)):
        write_shards(tmp_path / name, image_samples(count), {})
    given = {name: {"path": str(tmp_path / name), "share": share} for name, share in (("a", 4), ("b", 1))}
    made = module(given, random_crop=True)
    made.collate = ImageCollate()
    batch = next(iter(made.train_dataloader()))
    assert batch["images"].shape == (10, 3, 16, 16) and Counter(batch["source"]) == {"a": 8, "b": 2}
    assert Counter(made.captions()) == Counter(
        f"{n} in wording {k}" for count in (8, 5) for n in range(count) for k in (0, 1)
    )
