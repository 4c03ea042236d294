"""What may change when a run goes on: the rest is refused, with the old and the new value of each key."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from sdscratch.config import Change, changes, check_identity, compose, settings
from sdscratch.config.changes import ABSENT, IDENTITY
from sdscratch.errors import ConfigError

WITNESSES = {"dataset.fingerprint": "a", "vae.fingerprint": "b", "text_encoder.fingerprint": "c"}

SOURCES = ("~dataset.count", "~dataset.val_count", "dataset.sources={a: {path: x, share: 3}, b: {path: y, share: 1}}")


@pytest.fixture(scope="module")
def tiny():
    return compose("train", ["experiment=tiny", "init_from=runs/a"])


def changed(cfg, **updates) -> list[Change]:
    """What differs when keys, written with __ for dots, have other values."""
    other = cfg.copy()
    for key, value in updates.items():
        OmegaConf.update(other, key.replace("__", "."), value)
    return changes(settings(cfg), settings(other))


def test_settings_are_plain_values_by_dotted_key_each_of_them_once(tiny):
    known = settings(tiny)
    assert known["seed"] == 0 and known["model.block_out_channels"] == [32, 64] and known["optimizer.lr"] == 1e-3
    assert known["dataset.path"].endswith("shapes_32_64")
    assert not {"dataset.seed", "dataset.global_batch_size", "trainer.max_steps"} & known.keys()  # copies of others
    assert {type(value) for value in known.values()} <= {str, int, float, bool, list, type(None)}


def test_no_secret_is_among_them(monkeypatch, tiny):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    cfg = tiny.copy()
    cfg.stage.preview_prompts = ["say 0123456789abcdef"]
    assert "0123456789abcdef" not in str(settings(cfg))


def test_every_key_that_makes_a_run_what_it_is_is_a_key_of_the_configuration_or_found_out_when_training(tiny):
    known = {*settings(tiny), *settings(compose("train", ["experiment=tiny", "objective=epsilon", "dataset=shards"]))}
    known |= {*settings(compose("train", ["experiment=tiny", "dataset=mixture", *SOURCES]))}
    known |= {*WITNESSES, "dataset.seed"}
    for name in IDENTITY:
        assert any(key == name or key.startswith(f"{name}.") for key in known), name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("global_batch_size", 8),
        ("model__block_out_channels", [32, 32]),
        ("model__layers_per_block", 2),
        ("vae__latent_channels", 8),
        ("text_encoder__hidden_size", 64),
        ("stage___target_", "sdscratch.training.Clip"),
        ("objective___target_", "sdscratch.diffusion.DiffusionObjective"),
        ("optimizer___target_", "torch.optim.SGD"),
        ("dataset__resolution", 64),
        ("dataset__seed", 3),
    ],
)
def test_what_makes_a_run_what_it_is_may_not_change_unless_allowed(tiny, key, value):
    name = key.replace("__", ".", 1)
    found = changed(tiny, **{key: value})
    old = settings(tiny).get(name, ABSENT)
    with pytest.raises(ConfigError) as refusal:
        check_identity("runs/a", found, [])
    line = f"  {name}: {old} -> {value}"
    assert line in str(refusal.value).splitlines()
    permission = str(refusal.value).splitlines()[0].rpartition("resume.allow_change=[")[2].rstrip("]").split(",")
    check_identity("runs/a", found, permission)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer__lr", 2e-3),
        ("optimizer__weight_decay", 0.1),
        ("objective__min_snr_gamma", 5.0),
        ("stage__ema_decay", 0.99),
        ("max_steps", 60),
        ("caption_dropout", 0.2),
        ("callbacks__checkpoints__every", 5),
        ("trainer__accumulate_grad_batches", 2),
        ("dataset__num_workers", 2),
        ("dataset__path", "elsewhere"),
        ("model__gradient_checkpointing", True),
    ],
)
def test_what_may_change_is_told(tiny, key, value):
    found = changed(tiny, **{key: value})
    check_identity("runs/a", found, [])
    assert Change(key.replace("__", "."), settings(tiny)[key.replace("__", ".")], value) in found


@pytest.mark.parametrize(
    ("key", "value"),
    [("resume_from", "auto"), ("paths__runs", "x"), ("resume__allow_change", ["seed"]), ("init_from", None)],
)
def test_what_is_about_the_session_is_no_change(tiny, key, value):
    assert all(change.key == "dataset.path" for change in changed(tiny, **{key: value}))


def test_other_data_or_networks_behind_the_same_path_are_refused(tiny):
    for name in WITNESSES:
        found = changes(settings(tiny) | WITNESSES, settings(tiny) | WITNESSES | {name: "other"})
        with pytest.raises(ConfigError, match=rf"{name}: . -> other"):
            check_identity("runs/a", found, ["seed"])
        check_identity("runs/a", found, [name.partition(".")[0]])


def test_shares_make_a_run_what_it_is_and_where_its_sources_lie_does_not():
    mixed = compose("train", ["experiment=tiny", "dataset=mixture", *SOURCES])
    for key, value in {"dataset__sources__a__share": 4, "dataset__replay__share": 0.1}.items():
        name = key.replace("__", ".")
        with pytest.raises(ConfigError, match=f"{name}: .* -> {value}"):
            check_identity("runs/a", changed(mixed, **{key: value}), [])
        check_identity("runs/a", changed(mixed, **{key: value}), ["dataset"])
    check_identity("runs/a", changed(mixed, dataset__sources__a__path="z"), [])


def test_all_is_said_at_once_and_on_one_screen(tiny):
    found = changed(tiny, seed=1, global_batch_size=8) + [Change(f"model.key{i}", i, i + 1) for i in range(50)]
    with pytest.raises(ConfigError) as refusal:
        check_identity("runs/a", found, [])
    lines = str(refusal.value).splitlines()
    assert "init_from=runs/a" in lines[0] and lines[0].endswith("resume.allow_change=[global_batch_size,seed,model]")
    assert len(lines) == 32 and lines[-1].strip() == "... and 22 more"


def test_a_permission_that_means_nothing_is_refused():
    with pytest.raises(ConfigError, match="'sed' needs no permission; did you mean 'seed'"):
        check_identity("runs/a", [], ["sed"])
    for name in ("dataset", "model.block_out_channels", "objective", "seed"):
        check_identity("runs/a", [], [name])
