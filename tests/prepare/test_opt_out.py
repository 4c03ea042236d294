from __future__ import annotations

import pytest

from sdscratch.prepare.download.opt_out import opted_out


@pytest.mark.parametrize(
    ("headers", "directive"),
    [
        (["noai"], "noai"),
        (["NoImageAI"], "noimageai"),
        (["nofollow, noindex"], "noindex"),
        (["none"], "none"),
        (["nofollow", "noimageindex"], "noimageindex"),
        (["sdscratch: noai"], "noai"),
        (["*: noindex"], "noindex"),
        (["max-snippet: 20, noindex"], "noindex"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], "noai"),
        (["otherbot: nofollow, sdscratch: noai"], "noai"),
        (["otherbot: noindex"], None),
        (["otherbot: nofollow, noindex"], None),
        (["otherbot: noindex", "nofollow"], None),
        (["all"], None),
        (["noaircraft"], None),
        (["max-image-preview: none"], None),
        (["", ",", ":", ": ,:"], None),
        ([], None),
    ],
)
def test_a_directive_counts_where_it_is_for_everyone_or_for_us(headers, directive):
    assert opted_out(headers, "SDScratch") == directive
