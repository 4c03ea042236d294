"""The tables about drawn pictures: how they differ from real ones, and how well they follow their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdscratch.errors import ConfigError
from sdscratch.evaluation.bootstrap import SHARE, estimate, mean
from sdscratch.evaluation.distribution import LEAST, covered, fid_estimate, inception_score, kid
from sdscratch.evaluation.drawn_pictures import DrawnPictures
from sdscratch.evaluation.prompt_suites import Prompt
from sdscratch.evaluation.results import Row, Table
from sdscratch.evaluation.shapes_judge import ATTRIBUTES, judge


def distribution_table(
    real: Tensor, drawn: Tensor, logits: Tensor | None, protocol: Mapping[str, Any], replicates: int
) -> Table:
    """FID, KID, precision and recall of features (N, D) of real pictures and of those drawn for the captions of the same.

    Beside them FID and KID of the real pictures' two halves: what other real pictures would have, half as many. logits: of
    the drawn ones' classes, for the Inception score. Raises ConfigError for fewer than LEAST pictures.
    """
    if min(len(real), len(drawn)) < LEAST:
        raise ConfigError(
            f"{len(real)} real and {len(drawn)} drawn pictures are too few for FID: expected at least {LEAST} of each. Set "
            "a larger count"
        )
    halves = real[0::2], real[1::2]
    rows = [
        Row.of("FID", fid_estimate(real, drawn, replicates, paired=True)),
        Row.of("FID of two halves of the real", fid_estimate(*halves, replicates)),
        Row.of("KID x 1000", estimate(_kid, real, drawn, replicates=replicates, paired=True)),
        Row.of("KID x 1000 of two halves of the real", estimate(_kid, *halves, replicates=replicates)),
        Row.of("precision", estimate(mean, covered(drawn, by=real), replicates=replicates, within=SHARE)),
        Row.of("recall", estimate(mean, covered(real, by=drawn), replicates=replicates, within=SHARE)),
    ]
    if logits is not None:
        rows.append(Row.of("Inception score", estimate(inception_score, logits, replicates=replicates)))
    note = (
        "FID falls with the number of pictures alone: compare it between tables of the same N and feature network only. The "
        "halves of the real pictures are half as many, and show other captions. Drawn ones share theirs with the real ones, "
        "which alone brings FID below that of other real pictures, and KID below 0."
    )
    return Table("Drawn against real pictures", dict(protocol), rows, note)


def caption_table(
    images: Tensor, texts: Tensor, prompts: Sequence[Prompt], protocol: Mapping[str, Any], replicates: int
) -> Table:
    """CLIP score of pictures and their prompts (N, D), overall and by category, and with the prompts of the next pictures."""
    scores = clip_scores(images, texts)
    rows = [Row.of("CLIP score", estimate(mean, scores, replicates=replicates))]
    if len(images) > 1:
        shifted = clip_scores(images, texts.roll(len(texts) // 2, dims=0))
        rows.append(Row.of("CLIP score, prompts shuffled", estimate(mean, shifted, replicates=replicates)))
    for category, numbers in categories(prompts).items():
        rows.append(Row.of("CLIP score", estimate(mean, scores[numbers], replicates=replicates), category))
    note = "100 times the cosine of picture and prompt, at least 0 (Hessel et al. 2021, without their factor of 2.5)."
    return Table("Pictures and their prompts", dict(protocol), rows, note)


def judged_table(pictures: DrawnPictures, protocol: Mapping[str, Any], replicates: int) -> Table:
    """The shares of pictures of known scenes that show the right colour, shape, position, background, and all of them."""
    scenes = [(i, prompt.scene) for i, prompt in enumerate(pictures.prompts) if prompt.scene is not None]
    right = torch.tensor([_agreements(pictures, i, scene) for i, scene in scenes], dtype=torch.float64)
    right = torch.cat([right, right.all(dim=1, keepdim=True)], dim=1)
    rows = []
    for category, numbers in categories(pictures.prompts).items():
        for name, column in zip((*ATTRIBUTES, "all four"), right[numbers].unbind(dim=1), strict=True):
            rows.append(Row.of(f"right {name}", estimate(mean, column, replicates=replicates, within=SHARE), category))
    return Table("What the judge of shapes read back", dict(protocol), rows, "Shares of the pictures, in [0, 1].")


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """(N,) in [0, 100]."""
    return 100 * F.cosine_similarity(images, texts, dim=1).clamp(min=0)


def categories(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Numbers of the prompts of each named category, in the order in which they come."""
    found: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        if prompt.category:
            found.setdefault(prompt.category, []).append(number)
    return found


def _kid(real: Tensor, drawn: Tensor) -> float:
    return 1000 * kid(real, drawn)


def _agreements(pictures: DrawnPictures, i: int, scene: Any) -> list[bool]:
    verdict = judge(pictures.picture(i))
    return [getattr(verdict, name) == getattr(scene, name) for name in ATTRIBUTES]
