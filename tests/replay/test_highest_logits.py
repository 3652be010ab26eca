"""The search for the highest logits finds what topk finds, whatever the row holds."""

from __future__ import annotations

import pytest
import torch

from replay.engines.highest_logits import GROUP, highest

WIDTHS = [4, GROUP, 4 * GROUP, 5 * GROUP + 7, 1000, 49152]


def logits(width: int, dtype: torch.dtype, shift: float) -> torch.Tensor:
    values = torch.randn((16, width), generator=torch.Generator().manual_seed(width)) * 4 + shift
    return values.to(dtype)


@pytest.mark.parametrize("shift", [0.0, 30.0, -30.0], ids=["mixed", "positive", "negative"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_finds_what_topk_finds(width, dtype, shift):
    rows = logits(width, dtype, shift)
    values, ids = highest(rows, 4)
    assert torch.equal(values, rows.topk(4, dim=-1).values)
    assert torch.equal(rows.gather(1, ids), values), "ids name the columns of the values"
    assert all(len(set(row)) == 4 for row in ids.tolist()), "four columns, not one of them twice"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_found_first(dtype, value):
    rows = logits(1000, dtype, 0.0)
    rows[3, 777] = value
    values, ids = highest(rows, 4)
    assert int(ids[3, 0]) == 777
    assert not torch.isfinite(values[3, 0])
    assert torch.isfinite(values[2]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_of_signed_nan_is_no_row_of_numbers(dtype):
    rows = logits(1000, dtype, 0.0)
    rows[5] = -torch.tensor(float("nan"), dtype=dtype)
    assert highest(rows, 4)[0][5].isnan().all()


def test_a_few_of_many_equal_logits_are_named_once_each():
    rows = torch.zeros((3, 1000), dtype=torch.bfloat16)
    rows[1] = -0.0
    rows[2, 500:] = -1.0
    values, ids = highest(rows, 4)
    assert values.tolist() == [[0.0] * 4] * 3
    assert all(len(set(row)) == 4 for row in ids.tolist())
    assert max(ids[2].tolist()) < 500


def test_a_view_of_a_wider_tensor_is_searched_in_place():
    wide = logits(1064, torch.bfloat16, 5.0)
    values, _ = highest(wide[:, :1000], 4)
    assert torch.equal(values, wide[:, :1000].topk(4, dim=-1).values)
