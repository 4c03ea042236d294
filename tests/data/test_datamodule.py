from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from itertools import islice

import lightning as L
import pytest
import torch
from tiny_shards import image_samples, latent_samples
from torch import nn
from torch.utils.data.dataloader import _BaseDataLoaderIter

from sdscratch.data import DataModule, ImageCollate, LatentCollate
from sdscratch.data.index import OpenFiles
from sdscratch.data.loading import PositionSampler, end_workers, one_ahead
from sdscratch.data.shards import write_shards
from sdscratch.errors import ConfigError, DataError
from sdscratch.randomness import noise

GLOBAL_BATCH = 8


def to_timesteps(u: torch.Tensor) -> torch.Tensor:
    return (u * 1000).long()


def collate(latent_shape=None, **options) -> LatentCollate:
    return LatentCollate(seed=5, timesteps=to_timesteps, caption_dropout=0.3, latent_shape=latent_shape, **options)


def module(path, **options) -> DataModule:
    defaults = {"resolution": 16, "global_batch_size": GLOBAL_BATCH, "seed": 5, "flip": True}
    defaults["random_crop"] = path.name != "latents"
    made = DataModule(str(path), **(defaults | options))
    made.collate = collate((4, 2, 2))
    return made


def by_position(batches) -> dict[int, list]:
    """Every batch taken apart: position -> what was made for it."""
    rows = {}
    for batch in batches:
        for i, position in enumerate(batch["positions"].tolist()):
            assert position not in rows, f"{position} came twice"
            rows[position] = [value[i] for name, value in sorted(batch.items()) if name != "quarantined"]
    return rows


class Ranked:
    """As much of a trainer as a datamodule asks of it, for a rank of a world that one process cannot be."""

    def __init__(self, rank: int, world_size: int, accumulate: int):
        self.global_rank, self.world_size, self.accumulate_grad_batches = rank, world_size, accumulate
        self.strategy = self
        self.root_device = torch.device("cpu")


def run(path, steps=range(2, 7), world=1, workers=0, accumulate=1, **options) -> dict[int, list]:
    batches = []
    for rank in range(world):
        made = module(path, num_workers=workers, **options)
        made.trainer, made.start_step = Ranked(rank, world, accumulate), steps.start
        batches += islice(made.train_dataloader(), len(steps) * accumulate)
    return by_position(batches)


def equal(a: dict[int, list], b: dict[int, list]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for p in a for x, y in zip(a[p], b[p], strict=True)
    )


@pytest.mark.filterwarnings("ignore:.*worker processes in total:UserWarning")
@pytest.mark.parametrize("kind", ["image_shards", "latent_shards"])
def test_workers_ranks_and_accumulation_change_no_sample_and_no_noise(request, kind):
    folder = request.getfixturevalue(kind)
    expected = run(folder)
    assert sorted(expected) == list(range(2 * GLOBAL_BATCH, 7 * GLOBAL_BATCH))
    for world in (1, 2):
        for workers in (0, 1, 2, 4):
            assert equal(run(folder, world=world, workers=workers), expected), (world, workers)
    assert equal(run(folder, world=2, accumulate=2), expected)
    assert not equal(run(folder, seed=6), expected)


@pytest.mark.parametrize("kind", ["image_shards", "latent_shards"])
def test_a_run_taken_up_at_any_step_goes_on_as_if_it_had_not_stopped(request, kind):
    folder = request.getfixturevalue(kind)
    whole = run(folder, range(0, 6))
    assert equal(run(folder, range(0, 2)) | run(folder, range(2, 5)) | run(folder, range(5, 6)), whole)


def test_the_global_random_state_is_neither_used_nor_moved(image_shards):
    torch.manual_seed(0)
    expected = run(image_shards)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert equal(run(image_shards), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 3)])
def test_a_step_holds_exactly_its_positions(world, accumulate):
    micro = 2
    size = world * accumulate * micro
    ranks = [iter(PositionSampler(3, size, micro, rank, world)) for rank in range(world)]
    for step in range(3, 6):
        found = [position for rank in ranks for _ in range(accumulate) for position in next(rank)]
        assert sorted(found) == list(range(step * size, (step + 1) * size))


def test_a_batch_that_no_memory_could_hold_is_refused_before_it_is_counted_out():
    with pytest.raises(ConfigError, match="global_batch_size=1000000000 makes micro-batches of 1000000000 samples"):
        PositionSampler(0, 10**9, 10**9)


def test_readers_are_ended_though_their_loader_is_still_held_and_they_pass_over_one_wish_to_end(image_shards):
    loader = iter(module(image_shards, num_workers=2).train_dataloader())
    next(loader)
    readers = multiprocessing.active_children()
    assert len(readers) == 2
    for reader in readers:
        os.kill(reader.pid, signal.SIGSTOP)  # so that it surely hears of no wish
        reader.terminate()
    before = signal.getsignal(signal.SIGCHLD)
    end_workers()  # of which torch says nothing: what has failed is to be said
    assert not any(reader.is_alive() for reader in readers)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_one_batch_is_taken_while_the_one_before_is_in_use_and_an_error_comes_when_its_batch_would():
    asked = [threading.Event() for _ in range(3)]

    def batches():
        for number, event in enumerate(asked):
            event.set()
            yield number
        raise DataError("the fourth")

    taken = one_ahead(batches())
    assert not asked[0].is_set()
    assert next(taken) == 0 and asked[1].wait(10) and not asked[2].is_set()
    assert [next(taken), next(taken)] == [1, 2]
    with pytest.raises(DataError, match="the fourth"):
        next(taken)
    assert list(one_ahead(iter([]))) == []


def test_a_batch_that_never_comes_keeps_nobody_who_leaves():
    never = threading.Event()

    def batches():
        yield 0
        never.wait()

    taken = one_ahead(batches())
    assert next(taken) == 0
    start = time.monotonic()
    taken.close()
    assert time.monotonic() - start < 30
    never.set()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_workers_read_is_taken_in_a_thread(latent_shards, monkeypatch, num_workers):
    threads = []

    following = _BaseDataLoaderIter.__next__

    def noted(loading):
        threads.append(threading.current_thread() is threading.main_thread())
        return following(loading)

    monkeypatch.setattr(_BaseDataLoaderIter, "__next__", noted)
    batches = iter(module(latent_shards, num_workers=num_workers).train_dataloader())
    next(batches)
    batches.close()
    assert set(threads) == {num_workers == 0}


def test_latent_batches_hold_what_they_say(latent_shards, image_shards):
    made = module(latent_shards)
    batch = next(iter(made.train_dataloader()))
    assert batch["latents"].shape == batch["noise"].shape == (8, 4, 2, 2) and "images" not in batch
    assert batch["positions"].tolist() == list(range(8)) and batch["positions"].dtype == torch.int64
    assert batch["timesteps"].shape == (8,) and batch["dropped"].dtype == torch.bool
    assert torch.equal(batch["noise"][3], noise(5, "noise", 3, (4, 2, 2)))
    assert all((caption == "") == drop for caption, drop in zip(batch["captions"], batch["dropped"], strict=True))
    assert batch["source"] == ["test"] * 8 and batch["quarantined"] == []

    made = module(image_shards)
    on_line = next(iter(made.train_dataloader()))
    assert on_line["images"].shape == (8, 3, 16, 16) and "latents" not in on_line
    assert torch.equal(on_line["vae_noise"][3], noise(5, "vae", 3, (4, 2, 2)))
    assert torch.equal(on_line["noise"], batch["noise"]) and torch.equal(on_line["timesteps"], batch["timesteps"])
    made.collate = collate(latent_shape=None)
    with pytest.raises(ConfigError, match="latent_shape"):
        next(iter(made.train_dataloader()))


def test_image_batches_hold_what_they_say_and_latents_are_none(image_shards, latent_shards):
    made = module(image_shards)
    made.collate = ImageCollate()
    batch = next(iter(made.train_dataloader()))
    assert batch["images"].shape == (8, 3, 16, 16) and -1 <= batch["images"].min() < 0 < batch["images"].max() <= 1
    assert [caption.split()[0] for caption in batch["captions"]] == [str(int(key)) for key in batch["keys"]]
    assert batch["positions"].tolist() == list(range(8)) and made.kind == "images"
    made = module(latent_shards)
    made.collate = ImageCollate()
    with pytest.raises(DataError, match="latents, but this stage trains on images"):
        next(iter(made.train_dataloader()))


def test_listing_captions_reads_no_picture(image_shards, monkeypatch):
    """Of a large set that would take hours."""
    made, read = DataModule(str(image_shards), 8, 4, seed=0), 0
    index = made.indexes[0]
    whole = sum(len(data) for n in range(len(index)) for data in index.read(n).values())
    from_file = OpenFiles.read

    def counted(files: OpenFiles, path: str, offset: int, size: int) -> bytes:
        nonlocal read
        read += size
        return from_file(files, path, offset, size)

    monkeypatch.setattr(OpenFiles, "read", counted)
    assert len(list(made.captions())) == 2 * len(index)
    assert 0 < read < whole / 2


@pytest.mark.parametrize(
    "wrong", [{"resolution": 10**6}, {"num_workers": 10**5}, {"val_samples": 0}, {"resolution": 10**20}]
)
def test_numbers_beyond_every_machine_are_refused_before_a_shard_is_opened(wrong):
    with pytest.raises(ConfigError, match=f"dataset.{next(iter(wrong))} is .* expected a whole number"):
        DataModule("nowhere", **{"resolution": 8, "global_batch_size": 4, "seed": 0, **wrong})


def test_a_folder_for_temporary_files_whose_path_no_socket_takes_is_refused(tmp_path, monkeypatch):
    """By whoever has workers: they would hand over no batch, and training wait for ever."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    DataModule("nowhere", resolution=8, global_batch_size=4, seed=0)
    with pytest.raises(ConfigError, match="TMPDIR=.* is too long .* at most 72 characters"):
        DataModule("nowhere", resolution=8, global_batch_size=4, seed=0, num_workers=1)


def test_captions_are_dropped_and_timesteps_drawn_at_their_rates(latent_shards):
    batches = list(islice(module(latent_shards, global_batch_size=100).train_dataloader(), 20))
    dropped, timesteps = (torch.cat([batch[name] for batch in batches]).double() for name in ("dropped", "timesteps"))
    assert abs(dropped.mean() - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5
    assert abs(timesteps.mean() - 500) < 4 * 1000 * (1 / 12 / 2000) ** 0.5
    assert abs(torch.corrcoef(torch.stack([dropped, timesteps]))[0, 1]) < 0.1


def test_validation_is_the_same_in_every_run_and_over_any_ranks(image_shards):
    def validate(world=1, **options):
        batches = []
        for rank in range(world):
            made = module(image_shards, holdout=0.4, val_samples=6, **options)
            made.trainer, made.start_step = Ranked(rank, world, 1), 9
            batches += list(made.val_dataloader())
        return by_position(batches)

    expected = validate()
    assert sorted(expected) == list(range(6))
    for options in ({}, {"seed": 77}, {"world": 2}, {"global_batch_size": 2}, {"num_workers": 1}):
        assert equal(validate(**options), expected), options


def test_validation_spreads_timesteps_evenly_drops_nothing_and_knows_no_training_sample(image_shards):
    made = module(image_shards, holdout=0.4, val_samples=6)
    batches = list(made.val_dataloader())
    assert sorted(t for batch in batches for t in batch["timesteps"].tolist()) == [83, 250, 416, 583, 750, 916]
    assert not any(batch["dropped"].any() or "" in batch["captions"] for batch in batches)
    held_out = {caption.split()[0] for batch in batches for caption in batch["captions"]}
    trained = {made.train_dataset()[position]["key"].lstrip("0") or "0" for position in range(100)}
    assert held_out and not held_out & trained


def test_fewer_held_out_samples_than_ranks_are_refused_before_training(image_shards):
    made = module(image_shards, holdout=0.4, val_samples=3)
    made.trainer = Ranked(0, 4, 1)
    for refused in (made.val_dataloader, made.setup):
        with pytest.raises(ConfigError, match=r"3 held-out samples \(dataset.val_samples=3\) are too few for 4 ranks"):
            refused()
    assert len(list(made.val_dataloader(whole=True))) == 2  # what one rank does alone


def test_a_held_out_folder_is_an_alternative_to_a_share(tmp_path, image_shards):
    write_shards(tmp_path / "val", image_samples(3), {"what": "val"})
    made = module(image_shards, val_path=str(tmp_path / "val"))
    assert [len(batch["captions"]) for batch in made.val_dataloader()] == [3]
    assert module(image_shards).val_dataloader() == []
    with pytest.raises(ConfigError, match="exclude each other"):
        module(image_shards, val_path="x", holdout=0.1)


def test_the_micro_batch_is_derived_and_must_be_whole(image_shards):
    made = module(image_shards)
    assert made.micro_batch_size == 8
    made.trainer = Ranked(0, 2, 2)
    assert made.micro_batch_size == 2
    made.trainer = Ranked(0, 1, 3)
    with pytest.raises(ConfigError, match="size=8 is not divisible by 1 devices x .*=3. Set it to a multiple of 3"):
        made.setup()


def test_latents_of_another_resolution_are_refused(latent_shards):
    with pytest.raises(DataError, match="latents of 16 px, but dataset.resolution is 32"):
        module(latent_shards, resolution=32).setup()
    made = module(latent_shards)
    made.require_vae("abc")
    with pytest.raises(DataError, match="another VAE"):
        made.require_vae("def")


def test_what_is_drawn_from_images_only_is_refused_of_latents_rather_than_passed_over(tmp_path):
    write_shards(tmp_path / "latents", latent_samples(4), {"flips": False})
    with pytest.raises(ConfigError, match="random_crop=true, but .* holds latents"):
        module(tmp_path / "latents", flip=False, random_crop=True).setup()
    with pytest.raises(ConfigError, match="flip=true, but .* holds latents without mirror images"):
        module(tmp_path / "latents").setup()
    module(tmp_path / "latents", flip=False).setup()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_workers", -1), ("val_samples", 0), ("window", 0), ("resolution", 0), ("global_batch_size", -4)],
)
def test_numbers_that_mean_nothing_are_refused(image_shards, setting, value):
    with pytest.raises(ConfigError, match=f"dataset.{setting} is {value}: expected a whole number"):
        module(image_shards, **{setting: value})


def test_a_share_of_dropped_captions_beyond_all_is_refused():
    with pytest.raises(ConfigError, match="caption_dropout is 2"):
        LatentCollate(seed=0, timesteps=to_timesteps, caption_dropout=2)


class Recorder(L.LightningModule):
    """Trains one weight and writes down the positions that it saw."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen, self.validated = nn.Parameter(torch.zeros(())), [], []

    def training_step(self, batch, batch_idx):
        self.seen += batch["positions"].tolist()
        return (self.weight - batch["latents"].mean()) ** 2

    def validation_step(self, batch, batch_idx):
        self.validated += batch["positions"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(made: DataModule, recorder: Recorder, **options) -> L.Trainer:
    trainer = L.Trainer(
        **options,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, made)
    return trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_lightning_trainer_walks_the_positions_and_stops_at_max_steps(latent_shards, workers):
    made, recorder = module(latent_shards, holdout=0.4, val_samples=5, num_workers=workers), Recorder()
    made.start_step = 4
    assert fit(made, recorder, max_steps=6, accumulate_grad_batches=2, val_check_interval=4).global_step == 6
    assert recorder.seen == list(range(4 * GLOBAL_BATCH, 10 * GLOBAL_BATCH))
    assert recorder.validated == list(range(5)) * 3


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_one_line_even_from_a_worker(tmp_path, workers):
    good = dict(latent_samples(9))
    write_shards(tmp_path / "bad", {**good, "000004": good["000004"] | {"latent.npy": b"no"}}.items(), {})
    with pytest.raises(DataError) as error:
        fit(module(tmp_path / "bad", num_workers=workers, random_crop=False), Recorder(), max_steps=9)
    assert str(error.value).startswith(f"{tmp_path}/bad/00000.tar: 000004 is a bad sample")
    assert "\n" not in str(error.value)


def test_batches_keep_their_size_when_bad_samples_are_replaced(tmp_path):
    good = dict(image_samples(9))
    write_shards(tmp_path / "bad", {**good, "000004": good["000004"] | {"png": b"no"}}.items(), {})
    made = module(tmp_path / "bad", on_bad="quarantine")
    batches = list(islice(made.train_dataloader(), 9))
    assert {len(batch["captions"]) for batch in batches} == {GLOBAL_BATCH}
    quarantined = [key for batch in batches for key in batch["quarantined"]]
    assert set(quarantined) == {"000004"} and len(quarantined) >= 8  # once per epoch, and where it would replace itself
