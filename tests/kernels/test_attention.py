"""The attention kernel against its reference: in Triton's interpreter, and at true shapes on a GPU."""

import pytest
import torch

from specquant.decoding.tree import DraftTree
from specquant.kernels.attention import CHUNK, Tiling, tree_attention_reference, tree_attention_triton

# The interpreter warns where rows that fill up a tile, and are not stored, divide 0 by 0.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in divide")


def random_tree(nodes, generator):
    parents = [-1] + [int(torch.randint(0, i, (1,), generator=generator)) for i in range(1, nodes)]
    return DraftTree.from_parents(torch.zeros(nodes, dtype=torch.long), torch.tensor(parents)).ancestors


def problem(rows, heads, kv_heads, head_dim, prefix, device, mask=None, seed=0, capacity=None):
    """Random queries and a cache that is NaN wherever nothing may look."""
    generator = torch.Generator().manual_seed(seed)
    mask = random_tree(rows, generator) if mask is None else mask
    used = prefix + mask.shape[1]
    query = torch.randn(rows, heads, head_dim, generator=generator).half().to(device)
    cache = torch.full((2, kv_heads, capacity or used + 3, head_dim), torch.nan, dtype=torch.float16)
    cache[:, :, :used] = torch.randn(2, kv_heads, used, head_dim, generator=generator)
    return query, *cache.to(device), prefix, mask.to(device)


def relative_error(output, *arguments):
    query, keys, values, *rest = arguments
    expected = tree_attention_reference(query.double(), keys.double(), values.double(), *rest)
    return ((output.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("row_invariant", [False, True])
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim", "prefix"),
    [
        (1, 8, 1, 128, 0),  # nothing but itself
        (1, 8, 1, 128, 1),
        (1, 3, 3, 64, 63),  # no groups; ends with a block of keys
        (2, 6, 2, 64, 64),  # groups of 3: not a power of two
        (5, 8, 1, 64, 200),
        (17, 4, 1, 64, CHUNK - 9),  # the draft reaches over a chunk's end, for long paths only
        (3, 8, 1, 64, CHUNK),
    ],
)
def test_a_tree(rows, heads, kv_heads, head_dim, prefix, row_invariant, device):
    arguments = problem(rows, heads, kv_heads, head_dim, prefix, device)
    assert relative_error(tree_attention_triton(*arguments, row_invariant), *arguments) < 1e-3


def test_splits_change_nothing_but_rounding(device):
    arguments = problem(9, 8, 2, 64, 150, device)
    for block_rows in (16, 64, 128):
        for parts, draft_apart in ((1, False), (2, True), (3, False), (7, True)):
            tiles = Tiling(block_rows, 32, parts, 4, 2, draft_apart)
            assert relative_error(tree_attention_triton(*arguments, tiles=tiles), *arguments) < 1e-3


@pytest.mark.parametrize("row_invariant", [False, True])
def test_a_row_may_see_slots_from_before_this_pass(row_invariant, device):
    # A level of an EAGLE tree: two new rows behind three older draft slots. The last two slots are the rows' own.
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]], dtype=torch.bool)
    arguments = problem(2, 4, 2, 64, 70, device, mask)
    assert relative_error(tree_attention_triton(*arguments, row_invariant), *arguments) < 1e-3


@pytest.mark.bits
@pytest.mark.parametrize("row_invariant", [False, True])
def test_the_prefix_length_may_lie_on_the_device(row_invariant, device):
    query, keys, values, prefix, mask = problem(3, 4, 2, 64, 77, device)
    expected = tree_attention_triton(query, keys, values, prefix, mask, row_invariant)
    on_device = torch.tensor([prefix], device=device)
    assert torch.equal(tree_attention_triton(query, keys, values, on_device, mask, row_invariant), expected)


@pytest.mark.parametrize("rows", [1, 17])
def test_each_head_has_keys_of_its_own(rows, device):
    """Whole steps of keys are found by their place among all heads' slots, which are more than are used."""
    arguments = problem(rows, 6, 3, 64, 130, device, capacity=300)
    assert relative_error(tree_attention_triton(*arguments), *arguments) < 1e-3


def decode_path(query, keys, values, prefix, mask, row):
    """The row alone, its ancestors moved to the end of the prefix: what decoding token by token sees."""
    path = prefix + mask[row].nonzero().squeeze(1)
    keys, values = keys.clone(), values.clone()
    for cache in (keys, values):
        cache[:, prefix : prefix + len(path)] = cache[:, path]
    own = torch.ones(1, 1, dtype=torch.bool, device=mask.device)
    return tree_attention_triton(query[row : row + 1], keys, values, prefix + len(path) - 1, own, row_invariant=True)


def check_row_invariance(query, keys, values, prefix, mask, rows):
    together = tree_attention_triton(query, keys, values, prefix, mask, row_invariant=True)
    for row in rows:
        assert torch.equal(decode_path(query, keys, values, prefix, mask, row)[0], together[row])


@pytest.mark.bits
@pytest.mark.parametrize("prefix", [5, CHUNK - 2])
def test_invariant_rows_have_the_bits_of_decoding_token_by_token(prefix, device):
    check_row_invariance(*problem(9, 4, 2, 64, prefix, device, capacity=CHUNK + 64), range(9))


LLAMA_70B = (64, 8, 128)


@pytest.mark.gpu
@pytest.mark.parametrize("row_invariant", [False, True])
@pytest.mark.parametrize("prefix", [1, 500, 4096, 32700])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 13, 30, 60, 64])
def test_true_shapes(rows, prefix, row_invariant):
    arguments = problem(rows, *LLAMA_70B, prefix, "cuda", seed=rows)
    first = tree_attention_triton(*arguments, row_invariant)
    assert relative_error(first, *arguments) < 2e-3
    for _ in range(5):
        poison = torch.full_like(first, torch.nan)
        del poison  # the next output's memory
        assert torch.equal(tree_attention_triton(*arguments, row_invariant), first)


@pytest.mark.gpu
@pytest.mark.parametrize("prefix", [0, 500, 4090, 20000])
def test_row_invariance_at_true_shapes(prefix):
    query, keys, values, prefix, mask = problem(64, *LLAMA_70B, prefix, "cuda", capacity=prefix + 128)
    check_row_invariance(query, keys, values, prefix, mask, range(0, 64, 5))


@pytest.mark.gpu
@pytest.mark.parametrize("row_invariant", [False, True])
@pytest.mark.parametrize("rows", [1, 64])
def test_bfloat16(rows, row_invariant):
    query, keys, values, *rest = problem(rows, *LLAMA_70B, 4096, "cuda")
    arguments = (*(x.bfloat16() for x in (query, keys, values)), *rest)
    assert relative_error(tree_attention_triton(*arguments, row_invariant), *arguments) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("row_invariant", [False, True])
@pytest.mark.parametrize("rows", [1, 13, 64])
def test_a_graph_follows_the_prefix_length(rows, row_invariant):
    query, keys, values, prefix, mask = problem(rows, *LLAMA_70B, 3000, "cuda")
    length = torch.tensor([prefix], device="cuda")
    tree_attention_triton(query, keys, values, length, mask, row_invariant)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = tree_attention_triton(query, keys, values, length, mask, row_invariant)
    for now in (3000, 100, 2049):
        length.fill_(now)
        graph.replay()
        assert torch.equal(output, tree_attention_triton(query, keys, values, now, mask, row_invariant))
