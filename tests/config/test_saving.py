"""Configurations as text: kept beside runs, and free text on its way in."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sdscratch.config import compose, literal, save_config, to_yaml


def test_a_saved_configuration_is_resolved_and_reads_back_the_same(conf, tmp_path):
    prompt = literal(r"50% ${off}, a \ or ${name}")
    cfg = compose("train", [f"prompt={prompt}", "name=y", "+optimizer.eps=1.0e-09"])
    save_config(cfg, tmp_path / "config.yaml")
    again = OmegaConf.load(tmp_path / "config.yaml")
    assert OmegaConf.to_container(again, resolve=True) == OmegaConf.to_container(cfg, resolve=True)
    assert again.run_dir == "runs/y" and again.optimizer.eps == 1e-9


def test_secrets_are_masked_and_tokens_of_text_are_not(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "pw")
    monkeypatch.setenv("NAME", "visible")
    text = to_yaml(
        OmegaConf.create(
            {
                "logger": {"api_key": "k1", "wandb_api_key": "k2", "apikey": "k3", "key": "visible"},
                "hub": {"hf_token": "k4", "token": None, "client_secret": "k5", "passwords": ["k6", "k7"]},
                "url": "https://me:0123456789abcdef@host",
                "copy": "${oc.env:HF_TOKEN}",
                "tokenizer": {"bos_token": "<start>", "num_tokens": 77, "max_length": 77},
            }
        )
    )
    assert not any(f"k{i}" in text for i in range(1, 8)) and "0123" not in text and "pw" not in text
    masked = OmegaConf.create(text)
    assert masked.url == "https://me:***@host" and masked.hub.token is None and masked.logger.key == "visible"
    assert masked.tokenizer == {"bos_token": "<start>", "num_tokens": 77, "max_length": 77}


def test_unresolved_yaml_keeps_interpolations(conf):
    assert "run_dir: ${paths.runs}/${name}" in to_yaml(compose("train"), resolve=False)


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.one_of(st.sampled_from("\\'\"${}[](),:=~?\n\t"), st.characters(exclude_categories=["Cs"])), max_size=20)
)
@example("a sunset, cinematic (4k)")
@example("it's \"quoted\" \\' = [1,2] {a: b} ~ + ünïcode 🌅")
@example("${oc.env:HOME} \\${x} \\\\${y} $ {z}")
def test_free_text_arrives_as_it_stands(text):
    override = OverridesParser.create().parse_override(f"prompt={literal(text)}")
    cfg = OmegaConf.create({"prompt": override.value()})
    assert cfg.prompt == text if text != "???" else OmegaConf.is_missing(cfg, "prompt")
