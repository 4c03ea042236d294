"""POST /generate: the pictures that it draws, and what it says of wishes that do not fit."""

from __future__ import annotations

import json
import math

import pytest
from serving import picture, same

from sdscratch.diffusion.samplers import SAMPLERS
from sdscratch.pipeline import SamplingDefaults
from sdscratch.serving.limits import Limits
from sdscratch.serving.schemas import Size, Wish

PROMPT = "a red circle"


@pytest.mark.parametrize(
    "wish",
    [
        {"steps": 3},
        {"steps": 3, "n": 3, "cfg_scale": 6.0, "sampler": "heun", "negative_prompt": "a green square"},
        {"steps": 2, "weights": "raw", "guidance_rescale": 0.5, "sampler": "ddpm", "width": 36, "height": 28},
    ],
    ids=["one", "several", "raw"],
)
def test_pictures_are_those_that_the_pipeline_draws(client, pipe, wish):
    answer = client.post("/generate", json={"prompt": PROMPT, "seed": 5, **wish}).json()
    drawn = pipe(
        [PROMPT] * wish.get("n", 1),
        seed=5,
        num_inference_steps=wish["steps"],
        guidance_scale=wish.get("cfg_scale"),
        **{name: wish[name] for name in ("sampler", "negative_prompt", "weights", "guidance_rescale") if name in wish},
        width=wish.get("width"),
        height=wish.get("height"),
    )
    assert answer["image"] == answer["images"][0]
    assert [same(picture(uri), image) for uri, image in zip(answer["images"], drawn, strict=True)] == [True] * len(
        drawn
    )


def test_the_four_fields_of_the_released_service_are_enough(client):
    wish = {"prompt": PROMPT, "steps": 2, "cfg_scale": 7.5, "seed": 42}
    answer = client.post("/generate", json=wish).json()
    assert {name: answer[name] for name in wish} == wish
    assert picture(answer["image"]).size == (32, 32) and answer["generation_time_s"] > 0


def test_what_is_left_out_is_the_models_own_and_is_told(client, pipe):
    answer = client.post("/generate", json={"prompt": f"  {PROMPT} ", "seed": None}).json()
    unasked = client.get("/config").json()["defaults"]
    for name in set(unasked) - {"seed"}:
        assert answer[name] == unasked[name], name
    assert answer["prompt"] == PROMPT and answer["steps"] == pipe.defaults.num_inference_steps
    again = client.post("/generate", json={name: answer[name] for name in ("prompt", *unasked)}).json()
    assert again["images"] == answer["images"]


def test_a_picture_says_in_its_file_how_to_draw_it_again(client):
    wish = {"prompt": 'a "red" circle; ☃', "steps": 2, "seed": 9, "n": 2}
    second = picture(client.post("/generate", json=wish).json()["images"][1])
    assert second.text["prompt"] == wish["prompt"] and second.text["seed"] == "10"
    assert second.text["num_inference_steps"] == "2" and second.text["Software"].startswith("sdscratch ")


def test_a_prompt_that_is_too_long_to_be_read_whole_is_drawn_with_a_note(client):
    notes = [client.post("/generate", json={"prompt": "red " * n, "steps": 1}).json()["notes"] for n in (5, 200)]
    assert notes[0] == [] and "the prompt has 202 tokens, of which the model reads 24" in notes[1][0]


WRONG = [
    ("prompt", [None, "", "  \n", 7, {}, [], "x" * 2001, True]),
    ("negative_prompt", [None, 7, {}, "x" * 2001]),
    ("steps", [0, -1, 10**9, 10**30, 2.5, "20", {}, [], True, 1001]),
    ("cfg_scale", [-1, 31, 1e400, "7", {}, True]),
    ("guidance_rescale", [-0.1, 1.1, None, "a"]),
    ("sampler", ["", "euler_b", 1, {}, "__class__"]),
    ("seed", [-1, 2**32, 1.5, "1", True, {}]),
    ("width", [0, -8, 33, 1028, 10**9, 2.5, "32"]),
    ("height", [0, 33, 10**9]),
    ("n", [0, 9, 65, 1.5, None, True]),
    ("weights", ["emma", 1, {}]),
    ("colour", ["red"]),
    ("", ["red"]),
    ("\ud800", ["red"]),
]


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG for value in values],
    ids=lambda value: str(value)[:20],
)
def test_a_value_that_does_not_fit_is_422_and_its_field_is_named(client, field, value):
    answer = client.post("/generate", content=json.dumps({"prompt": PROMPT, "steps": 1, field: value}), headers=JSON)
    assert answer.status_code == 422
    problem = answer.json()
    assert set(problem) == {"error", "field", "hint"} and problem["field"] == field.replace("\ud800", r"\ud800")
    assert len(problem["error"]) < 200 and "\n" not in problem["error"]


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("prompt", " ", "prompt is empty: expected some text"),
        ("prompt", None, "prompt is null: expected a text"),
        ("prompt", "x" * 2001, "prompt is of 2001 characters: expected 1 to 2000"),
        ("prompt", "x" * 10_001, "prompt is a text of 10001 characters: expected at most 10000 characters"),
        ("steps", 10**9, "steps is 1000000000: expected at most 1000"),
        ("steps", 10**50, "steps is a number of 51 digits: expected at most 1000"),
        ("steps", 2.5, "steps is 2.5: expected a whole number"),
        ("steps", {}, "steps is an object: expected a whole number"),
        ("cfg_scale", math.nan, "cfg_scale is NaN: expected a finite number"),
        ("cfg_scale", 10**400, "cfg_scale is a number of 401 digits: expected a number of fewer digits"),
        ("cfg_scale", 31, "cfg_scale is 31: expected 0 to 30"),
        ("sampler", "euler_b", f'sampler is "euler_b": expected one of {", ".join(SAMPLERS)}'),
        ("weights", "emma", "weights is \"emma\": expected 'ema' or 'raw'"),
        ("colour", "red", f'there is no field "colour": expected some of {", ".join(Wish.model_fields)}'),
        ("\ud800", "red", f'there is no field "\\ud800": expected some of {", ".join(Wish.model_fields)}'),
        ("two\nlines", "red", f'there is no field "two\\nlines": expected some of {", ".join(Wish.model_fields)}'),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_does_not_fit_is_said_in_our_words(client, field, value, words):
    body = json.dumps({"prompt": PROMPT, "steps": 1, field: value})
    assert client.post("/generate", content=body, headers=JSON).json()["error"] == words


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"{}", JSON, "prompt is missing"),
        (b"", JSON, "the body is missing"),
        (b"[]", JSON, "the body is a list: expected a JSON object, sent as Content-Type: application/json"),
        (b'{"prompt": ', JSON, "the body cannot be read as JSON, from character 12 on"),
        (b"{}", {}, "the body is not said to be JSON: expected a JSON object, sent as Content-Type: application/json"),
    ],
)
def test_a_body_that_does_not_fit_is_said_in_our_words(client, body, headers, words):
    assert client.post("/generate", content=body, headers=headers).json()["error"] == words


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'"a red circle"',
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "cfg_scale": NaN}',
        b'{"prompt": "a", "cfg_scale": Infinity}',
        b'{"prompt": "a", "steps": ' + b"9" * 5000 + b"}",
        b"[" * 30_000,
    ],
    ids=lambda body: body[:30].decode(errors="replace"),
)
def test_a_body_that_is_no_wish_is_422(client, body):
    answer = client.post("/generate", content=body, headers=JSON)
    assert answer.status_code == 422 and set(answer.json()) == {"error", "field", "hint"}


FORMS = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", None]


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("path", ["/generate", "/jobs"])
def test_what_browsers_let_pages_of_other_sites_send_unasked_is_no_wish(client, path, kind):
    """JSON they send only after they have asked, as they do for every method but GET, HEAD and POST."""
    headers = {} if kind is None else {"Content-Type": kind}
    assert client.post(path, content=b'{"prompt": "a"}', headers=headers).status_code == 422


def test_the_name_of_a_field_that_there_is_not_is_not_repeated_at_length(client):
    answer = client.post("/generate", json={"prompt": PROMPT, "k" * 60_000: 1})
    assert answer.status_code == 422 and len(answer.content) < 500


def test_the_cost_of_everything_together_is_limited_before_the_queue(client):
    wish = {"prompt": PROMPT, "width": 1024, "height": 1024}
    answer = client.post("/jobs", json={**wish, "steps": 101})
    assert answer.status_code == 422 and "width x height x steps x n is 105906176" in answer.json()["error"]
    assert client.get("/health").json()["queue"] == 0


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("GET", "/generate", "GET is not for this address: expected POST"),
        ("GET", "/nothing", "there is nothing at this address"),
        ("GET", "/page/nothing", "there is nothing at this address"),
        ("PUT", "/jobs/1", "PUT is not for this address: expected DELETE, GET"),
        ("DELETE", "/models/current", "DELETE is not for this address: expected PUT"),
    ],
)
def test_what_there_is_not_is_said_in_the_same_form(client, method, path, words):
    answer = client.request(method, path)
    assert answer.status_code in (404, 405) and set(answer.json()) == {"error", "field", "hint"}
    assert answer.json()["error"] == words


def test_what_a_model_would_do_unasked_stays_within_the_limits():
    limits = Limits(max_steps=2, max_guidance=1.5, max_side=16)
    defaults = SamplingDefaults(size=32, num_inference_steps=50, guidance_scale=7.5)
    wanted = limits.settle(Wish(prompt="a"), defaults, 4, ["ema"])
    assert (wanted.steps, wanted.cfg_scale, wanted.width, wanted.height) == (2, 1.5, 16, 16)
    assert limits.sizes(16, 16) == [Size(width=16, height=16)]


def test_what_a_model_would_do_unasked_is_a_size_that_it_can_draw():
    for size, side in ((30, 28), (7, 4), (2, 4), (5000, 1024)):
        wanted = Limits().settle(Wish(prompt="a", steps=1), SamplingDefaults(size=size), 4, ["ema"])
        assert (wanted.width, wanted.height) == (side, side)
