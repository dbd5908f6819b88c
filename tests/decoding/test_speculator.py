"""The loop on random models in float64: lossless, one pass a step, and all state as after a fresh prefill."""

import pytest
import torch
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode

from specquant.decoding import Acceptance, DraftTree, EagleDrafter, Greedy, Sampling, Speculator, Verdict
from specquant.decoding.acceptance import padded_rows
from specquant.errors import SpecquantError
from specquant.models import graphs
from specquant.models.eagle import EagleHead
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import set_compute_dtype
from tests.decoding.conftest import decode, perturbed, random_head, random_model

PROMPTS = [
    torch.randint(0, 37, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (1, 2, 7, 20)
]


def methods(target, intermediate, smallest, head):
    return {
        "vanilla": Speculator(target, Speculator(intermediate, min_draft_length=4)),
        "eagle2": Speculator(target, EagleDrafter(head, draft_size=20, iterations=4, top_k=4)),
        "eagle2, one iteration": Speculator(target, EagleDrafter(head, draft_size=4, iterations=1, top_k=5)),
        "hierarchical": Speculator(
            target,
            Speculator(intermediate, EagleDrafter(head, draft_size=12, iterations=3, top_k=4), min_draft_length=5),
        ),
        "three levels": Speculator(
            target,
            Speculator(
                intermediate, Speculator(smallest, EagleDrafter(head, 8, 2, 4), min_draft_length=2), min_draft_length=4
            ),
        ),
    }


METHODS = ["vanilla", "eagle2", "eagle2, one iteration", "hierarchical", "three levels"]


@pytest.fixture
def speculator(request, target, intermediate, smallest, head):
    return methods(target, intermediate, smallest, head)[request.param]


@pytest.mark.parametrize("by_graphs", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_greedy_decoding_is_lossless(method, by_graphs, target, intermediate, smallest, head, captured, monkeypatch):
    monkeypatch.setattr(graphs, "capturable", lambda model: by_graphs)
    models = [GraphedLlama(model) if by_graphs else model for model in (target, intermediate, smallest)]
    speculator, accepted = methods(*models, head)[method], []
    for prompt in PROMPTS:
        expected = decode(Speculator(target), prompt, 50)
        tokens = list(speculator.prefill(prompt, Greedy()).tokens)
        while len(tokens) < 50:
            step = speculator.step(50 - len(tokens))
            accepted.append(step.accepted_length)
            tokens += step.tokens
        assert tokens == expected
    assert min(accepted) == 1  # drafts were rejected,
    assert max(accepted) > 1  # and drafts were accepted
    assert bool(captured) == by_graphs


@pytest.mark.parametrize("speculator", METHODS, indirect=True)
def test_every_step_is_one_pass_of_the_target(speculator, target, monkeypatch):
    passes = []
    forward = target.forward
    monkeypatch.setattr(target, "forward", lambda tokens, *rest: passes.append(len(tokens)) or forward(tokens, *rest))
    speculator.prefill(PROMPTS[2], Greedy())
    assert len(passes) == 1
    for count in range(2, 12):
        step = speculator.step(20)
        assert len(passes) == count
        assert passes[-1] == len(step.tree)  # the root and its drafts, nothing run twice


@pytest.mark.parametrize("speculator", METHODS, indirect=True)
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_step_never_adds_more_than_its_limit(speculator, limit):
    speculator.prefill(PROMPTS[2], Greedy())
    assert all(1 <= speculator.step(limit).accepted_length <= limit for _ in range(8))


class Issued(TorchDispatchMode):
    """Notes the names of the operations that torch issues."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(operation.overloadpacket.__name__)
        return operation(*args, **kwargs or {})


def test_one_by_one_the_device_has_the_token_already(target, captured):
    """In front of a pass, the token is copied from the last verdict, and the length is written. Nothing else."""
    speculator = Speculator(GraphedLlama(target))
    for prompt in PROMPTS[1:3]:  # the second also follows a verdict, which was on another text
        tokens = [*speculator.prefill(prompt, Greedy()).tokens]
        for _ in range(2):
            with Issued() as issued:
                tokens += speculator.step(9).tokens
        assert issued.names[: issued.names.index("embedding")] == ["copy_", "fill_"]
        assert tokens == decode(Speculator(target), prompt, 3)


class AcceptsUpTo:
    """Greedy, but at most `length` drafts; then it adds a token that the draft does not have there."""

    def __init__(self, length):
        self.length = length

    def judge(self, tree: DraftTree, logits):
        path = list(range(1, len(tree)))[: self.length]
        following = int(tree.tokens[path[-1] + 1 if path else 1]) if len(path) + 1 < len(tree) else 0
        added = (following + 1) % logits.shape[1]
        accepted = Acceptance(path, [*tree.tokens[path].tolist(), added])
        return Verdict(padded_rows(path, len(tree), tree.tokens.device), lambda: accepted)


def assert_state_is_fresh(level: Speculator):
    """All caches and kept features equal those of a prefill of the same tokens."""
    while isinstance(level, Speculator):
        confirmed = level.tokens[: level.cache.length]
        cache = level.model.new_cache(level.cache.capacity)
        features = level.model.prefill(torch.tensor(confirmed), cache)
        torch.testing.assert_close(level.cache.keys[:, :, : cache.length], cache.keys[:, :, : cache.length])
        torch.testing.assert_close(level.cache.values[:, :, : cache.length], cache.values[:, :, : cache.length])
        below = level.drafter
        if below is not None:
            assert below.tokens == level.tokens
        if isinstance(below, EagleDrafter):
            assert below.known == level.cache.length
            torch.testing.assert_close(below.features[: below.known], features)
            fresh = EagleDrafter(below.head, below.draft_size, below.iterations, below.top_k)
            fresh.start(level.tokens[: below.known + 1], features, None)
            rows = below.cache.length  # what the head has not run again yet, it runs with the next draft
            assert 0 < rows <= fresh.cache.length
            torch.testing.assert_close(below.cache.keys[:, :, :rows], fresh.cache.keys[:, :, :rows])
            torch.testing.assert_close(below.cache.values[:, :, :rows], fresh.cache.values[:, :, :rows])
        level = below


@pytest.mark.parametrize("speculator", ["vanilla", "hierarchical", "three levels"], indirect=True)
@pytest.mark.parametrize("accepted", range(10))
def test_a_rejection_at_any_position_leaves_the_state_of_a_fresh_prefill(speculator, accepted):
    """Also inside an earlier inner round: the drafts here take several."""
    speculator.prefill(PROMPTS[3], Greedy())
    drafts = []
    for _ in range(4):
        speculator.rule = AcceptsUpTo(accepted)  # the outermost level's; the levels below stay greedy
        drafts.append(len(speculator.step(30).tree) - 1)
        assert_state_is_fresh(speculator)
    speculator.rule = Greedy()
    speculator.step(30)
    assert_state_is_fresh(speculator)
    assert min(drafts) >= 4


@pytest.mark.parametrize("speculator", ["eagle2", "hierarchical"], indirect=True)
def test_the_state_after_accepted_trees_is_that_of_a_fresh_prefill(speculator):
    speculator.prefill(PROMPTS[3], Greedy())
    for _ in range(6):
        speculator.step(30)
        assert_state_is_fresh(speculator)


def test_the_inner_levels_draft_in_rounds_until_the_minimum_length(target, intermediate, head):
    inner = Speculator(intermediate, EagleDrafter(head, 12, 3, 4), min_draft_length=5)
    speculator = Speculator(target, inner)
    speculator.prefill(PROMPTS[3], Greedy())
    for _ in range(5):
        step = speculator.step(40)
        assert 5 <= len(step.tree) - 1 == sum(step.inner_accepted_lengths)
        assert sum(step.inner_accepted_lengths[:-1]) < 5


VOCABULARY = 5


@pytest.mark.parametrize("rows", [4, 7])
@pytest.mark.parametrize("method", ["eagle2", "vanilla", "hierarchical"])
def test_sampling_with_drafters_of_fewer_or_more_tokens_has_the_targets_joint_distribution(method, rows):
    target = random_model(VOCABULARY, layers=1, seed=7, scale=0.3, context_length=16)
    speculator = with_other_rows(target, perturbed(target, 0.3, seed=8), rows, (5, 2, 2))[method]
    assert_targets_joint_distribution(target, speculator, draws=300)


@pytest.mark.parametrize("method", ["eagle2", "vanilla", "hierarchical"])
def test_sampling_has_the_targets_joint_distribution_end_to_end(method):
    target = random_model(VOCABULARY, layers=1, seed=7, scale=0.3, context_length=16)
    small = perturbed(target, 0.3, seed=8)
    head = random_head(target)
    speculator = {
        "eagle2": lambda: Speculator(target, EagleDrafter(head, 8, 2, 3)),
        "vanilla": lambda: Speculator(target, Speculator(small, min_draft_length=2)),
        "hierarchical": lambda: Speculator(target, Speculator(small, EagleDrafter(head, 5, 2, 2), min_draft_length=2)),
    }[method]()
    assert_targets_joint_distribution(target, speculator, draws=600)


def assert_targets_joint_distribution(target, speculator, draws):
    """Of the three tokens behind a prompt."""
    prompt = [1, 2]
    counts = torch.zeros((VOCABULARY,) * 3)
    rule = Sampling(seed=11)
    for _ in range(draws):
        # The first token belongs to the prompt's pass; ask for more, so that the drafts behind it are deep enough.
        counts[tuple(decode(speculator, prompt, 6, rule)[:3])] += 1
    expected = torch.zeros((VOCABULARY,) * 3, dtype=torch.float64)
    for a in range(VOCABULARY):
        for b in range(VOCABULARY):
            features = target.prefill(torch.tensor([*prompt, a, b]), target.new_cache(8))
            p = torch.softmax(target.logits(features), -1)
            expected[a, b] = p[1, a] * p[2, b] * p[3]
    likely = expected * draws >= 5
    observed = torch.cat((counts[likely], counts[~likely].sum()[None]))
    wanted = draws * torch.cat((expected[likely], expected[~likely].sum()[None]))
    assert chisquare(observed, wanted * (observed.sum() / wanted.sum())).pvalue > 1e-3


def with_rows(model, rows, seed=9):
    """The same model with fewer or more tokens. Those that it has more of are the likeliest."""
    copy = random_model(rows, layers=len(model.layers), context_length=model.context_length)
    kept = min(rows, model.config.vocab_size)
    for name, tensor in copy.state_dict().items():
        source = model.state_dict()[name]
        if tensor.shape == source.shape:
            tensor.copy_(source)
        else:
            tensor[:kept] = source[:kept]
            generator = torch.Generator().manual_seed(seed)
            tensor[kept:] = torch.randn(tensor[kept:].shape, generator=generator, dtype=tensor.dtype)
    return copy


def with_other_rows(target, small, rows, sizes):
    """Each method with drafters of `rows` tokens, as many as the target has or not."""
    vocab_size = target.config.vocab_size
    small, head = with_rows(small, rows), random_head(with_rows(target, rows))
    half = EagleHead(target.config, head.embed_tokens, target.lm_head)  # as heads with a copy of an embedding are
    half.load_state_dict(head.state_dict() | {"lm_head.weight": target.lm_head.weight})
    set_compute_dtype(half, torch.float64)
    of_target = {"vocab_size": vocab_size}
    return {
        "vanilla": Speculator(target, Speculator(small, None, 3, **of_target)),
        "eagle2": Speculator(target, EagleDrafter(head, *sizes, **of_target)),
        "eagle2, an embedding of its own": Speculator(target, EagleDrafter(half, *sizes, **of_target)),
        "hierarchical": Speculator(
            target, Speculator(small, EagleDrafter(random_head(small), *sizes, **of_target), 3, **of_target)
        ),
    }


@pytest.mark.parametrize("rows", [30, 45])
def test_drafters_with_fewer_or_more_tokens_are_lossless(target, intermediate, rows, monkeypatch):
    for method, speculator in with_other_rows(target, intermediate, rows, (12, 3, 4)).items():
        drafted, lengths, propose = set(), set(), speculator.drafter.propose

        def noted(limit, propose=propose, drafted=drafted):
            tree = propose(limit)
            drafted |= set(tree.tokens[1:].tolist())
            return tree

        monkeypatch.setattr(speculator.drafter, "propose", noted)
        for rule in (lambda: Greedy(), lambda: Sampling(seed=3)):
            for prompt in PROMPTS:
                tokens = list(speculator.prefill(prompt, rule()).tokens)
                while len(tokens) < 40:
                    step = speculator.step(40 - len(tokens))
                    lengths.add(step.accepted_length)
                    tokens += step.tokens
                if isinstance(speculator.rule, Greedy):
                    assert tokens == decode(Speculator(target), prompt, 40), method
        # The target writes tokens that a smaller drafter lacks; a larger one never drafts those that the target lacks.
        known = 37 if method == "eagle2, an embedding of its own" else min(37, rows)
        assert drafted <= set(range(known)), method
        assert max(lengths) > 1


def test_a_drafter_with_another_vocabulary_is_refused(target):
    with pytest.raises(SpecquantError, match="vocabulary"):
        Speculator(target, Speculator(random_model(vocab_size=40)))


@pytest.mark.parametrize(("size", "iterations", "top_k"), [(0, 2, 4), (4, 0, 4), (4, 2, 0), (22, 2, 4), (4, 2, 38)])
def test_a_tree_that_cannot_be_grown_is_refused(head, size, iterations, top_k):
    with pytest.raises(SpecquantError):
        EagleDrafter(head, size, iterations, top_k)


def test_a_tree_of_every_possible_size_can_be_grown(target, head):
    for size in (1, 2, 5, 6, 20, 21, 64):
        drafter = EagleDrafter(head, size, iterations=5, top_k=4)
        speculator = Speculator(target, drafter)
        speculator.prefill(PROMPTS[2], Greedy())
        assert len(speculator.step(30).tree) == size
