"""Work in a CUDA graph, where kernels overlap."""

import torch


def assert_replays_give(expected, run):
    """Each time, for what does not wait reads too early only now and then."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()
    for _ in range(50):
        graph.replay()
        assert torch.equal(y, expected)
