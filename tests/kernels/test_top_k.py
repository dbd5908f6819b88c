import pytest
import torch

from specquant.kernels.top_k import BLOCK, log_softmax_top_k_reference, log_softmax_top_k_triton


def check(logits, k):
    """Log-probabilities against the reference; tokens by a stable sort: of equals, the lowest come first."""
    for _ in range(2):  # the second run needs the counters that the first has left
        log_p, tokens = log_softmax_top_k_triton(logits, k)
        expected, _ = log_softmax_top_k_reference(logits, k)
        torch.testing.assert_close(log_p, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(tokens, logits.float().sort(dim=-1, descending=True, stable=True).indices[:, :k])


@pytest.mark.parametrize(("rows", "size", "k"), [(1, 10, 10), (3, 4096, 1), (2, BLOCK + 1, 10), (2, 2 * BLOCK + 77, 3)])
def test_top_k(rows, size, k, device):
    check(torch.randn(rows, size, generator=torch.Generator().manual_seed(0)).mul(3).half().to(device), k)


def test_of_equals_the_lowest_tokens(device):
    logits = torch.randint(-2, 2, (2, 2 * BLOCK), generator=torch.Generator().manual_seed(0)) * 0.5
    logits[0, 5:9] = -0.0
    check(logits.half().to(device), 10)


def test_tokens_may_be_impossible_and_logits_large(device):
    logits = torch.full((1, BLOCK + 20), -torch.inf)
    logits[0, [3, 100, 500]] = torch.tensor([30000.0, 29990.0, -30000.0])
    log_p, tokens = log_softmax_top_k_triton(logits.to(device), 3)
    assert tokens.tolist() == [[3, 100, 500]]
    torch.testing.assert_close(log_p.cpu(), torch.tensor([[-4.5399e-5, -10.0000454, -60000.0]]))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 10, 64])
def test_llama_3s_vocabulary(rows):
    logits = torch.randn(rows, 128256, generator=torch.Generator().manual_seed(rows)).mul(3).half().cuda()
    check(logits, 10)
    together = log_softmax_top_k_triton(logits, 10)
    alone = log_softmax_top_k_triton(logits[-1:], 10)
    assert torch.equal(alone[0][0], together[0][-1])
