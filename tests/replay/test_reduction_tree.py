"""The order of additions is found exactly where it is known, and nothing is said where there is none."""

import pytest
import torch

from replay import reduction_tree
from replay.factors.gemm_k_split import split_linear
from replay.reduction_tree import Shape, Tree, TreeError, chained, last_addition, tree_of

FP32 = torch.float32


def terms(x, w):
    return (x[:, None, :] * w[None]).float()


def forwards(x, w):
    one, *others = terms(x, w).unbind(-1)
    for other in others:
        one = one + other
    return one


def backwards(x, w):
    return forwards(x.flip(-1), w.flip(-1))


def pairwise(x, w):
    one = terms(x, w)
    while one.shape[-1] > 1:
        one = one[..., ::2] + one[..., 1::2]
    return one[..., 0]


def lanes(x, w):
    """Four running sums over every fourth term, then pairwise: what a vector unit does."""
    running = torch.stack([forwards(x[:, lane::4], w[:, lane::4]) for lane in range(4)], -1)
    left, right = running[..., 0] + running[..., 1], running[..., 2] + running[..., 3]
    return left + right


def fused(x, w):
    """Four terms and the running sum at once, each cut off at the largest one's last place: a tensor core."""
    total = torch.zeros(x.shape[0], w.shape[0], dtype=torch.float64)
    for four in terms(x, w).double().unflatten(-1, (-1, 4)).unbind(-2):
        together = torch.cat([total[..., None], four], -1)
        unit = together.abs().amax(-1, keepdim=True) * 2.0**-24
        total = (torch.trunc(together / unit) * unit).sum(-1)
    return total.float()


def splits(count):
    return lambda x, w: split_linear(count, x, w, None)


@pytest.mark.parametrize("k", [2, 7, 64, 96])
def test_one_by_one_from_either_end(k):
    first = tree_of(forwards, Shape(1, 32, k, FP32))
    assert first.joins[0] == tuple(((term,),) for term in range(1, k))
    last = tree_of(backwards, Shape(1, 32, k, FP32))
    assert last.joins[0] == ((tuple(range(1, k)),),)
    assert (first == last) == (k == 2)
    assert last_addition(forwards, Shape(1, 32, k, FP32)) == 1
    assert last_addition(backwards, Shape(1, 32, k, FP32)) == k - 1


def test_pairwise():
    tree = tree_of(pairwise, Shape(3, 16, 8, FP32))
    assert tree.joins[0] == (((1,),), ((2, 3),), ((4, 5, 6, 7),))
    assert tree.joins[4] == (((5,),), ((6, 7),))
    assert str(tree) == "K=8 as 4+4; first 4 as 2+2; first 2 as 1+1"


def test_several_terms_at_once():
    tree = tree_of(fused, Shape(1, 16, 16, FP32))
    assert tree.joins[0] == (((1,), (2,), (3,)), *(tuple((term,) for term in range(at, at + 4)) for at in (4, 8, 12)))
    assert str(tree) == "K=16 as 4+3×(4×1 at once); first 4 as 4×1 at once"


def test_lanes_are_told_from_halves():
    tree = tree_of(lanes, Shape(1, 16, 32, FP32))
    assert tree.joins[0][-2:] == ((tuple(range(1, 32, 4)),), (tuple(one for one in range(32) if one % 4 > 1),))
    assert str(tree) == "K=32 as 16+16 interleaved; first 16 as 8+8 interleaved; first 8 as one by one"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("m", [1, 5, 44])
@pytest.mark.parametrize(("count", "k", "says"), [(2, 576, "288+288"), (3, 576, "192+192+192"), (3, 64, "22+21+21"),
                                                 (6, 576, "6×96")])  # fmt: skip
def test_our_own_k_split_is_read_back_whatever_the_library_does_inside(dtype, m, count, k, says):
    shape = Shape(m, 192, k, dtype)
    sizes = [len(part) for part in torch.arange(k).tensor_split(count)]
    assert str(tree_of(splits(count), shape)).split(";")[0] == f"K={k} as {says}"
    assert chained(splits(count), shape, sizes)
    assert not chained(splits(count + 1), shape, sizes)
    assert not chained(splits(count - 1), shape, sizes) or count == 2
    assert last_addition(splits(count), shape) == sizes[-1]


def test_equal_trees_have_equal_digests_and_others_not():
    trees = [tree_of(splits(count), Shape(1, 192, 576)) for count in (1, 2, 3, 2)]
    assert trees[1] == trees[3]
    assert len({tree.digest for tree in trees}) == 3
    assert trees[1].digest == trees[3].digest
    assert str(Tree(1, {0: ()})) == "K=1"


def test_what_is_no_sum_in_one_order_is_refused():
    order = torch.Generator().manual_seed(1)

    def shuffled(x, w):
        at = torch.randperm(x.shape[-1], generator=order)
        return forwards(x[:, at], w[:, at])

    for product in (shuffled, lambda x, w: forwards(x, w).abs() + 0.5):
        with pytest.raises(TreeError, match="not one sum"):
            tree_of(product, Shape(1, 8, 64, FP32))


def test_what_costs_too_much_or_has_no_range_is_refused(monkeypatch):
    with pytest.raises(TreeError, match="float16 has too small a range"):
        tree_of(forwards, Shape(1, 8, 64, torch.float16))
    monkeypatch.setitem(reduction_tree.MOST_WORK, "cpu", 1000)
    with pytest.raises(TreeError, match="multiply-adds"):
        tree_of(forwards, Shape(1, 8, 64, FP32))
