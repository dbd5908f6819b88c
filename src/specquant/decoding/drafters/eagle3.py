"""EAGLE-3 (arXiv 2503.01840): EAGLE-2's trees from another head, which reads features of three layers (`models.eagle3`)
and drafts tokens of a vocabulary of its own. All that is new is in the head."""

from collections.abc import Callable

from specquant.decoding.drafter import Drafter
from specquant.decoding.method import DraftSettings, Method, Plan, TwoModels
from specquant.decoding.speculator import Speculator
from specquant.tables.marks import Mark


class Eagle3(Method):
    """The target verifies the trees of its own EAGLE-3 head."""

    name = "eagle3"
    mark = Mark("EAGLE-3", "#cc78bc", "v")
    companions = ("eagle3_target",)
    head = "eagle3"
    probes = tuple(Plan("eagle3", *tree) for tree in ((8, 2), (24, 3), (60, 6)))

    def plan(self, settings: DraftSettings) -> Plan:
        return Plan(self.name, *settings.tree)

    def drafter(
        self, plan: Plan, models: TwoModels, trees: Callable[[str], Drafter], settings: DraftSettings
    ) -> Drafter:
        return trees("target")


class HierarchicalEagle3(Method):
    """The intermediate model verifies the trees of its EAGLE-3 head, and hands up the sequence that it accepted."""

    name = "hierarchical-eagle3"
    mark = Mark("hierarchical, EAGLE-3", "#7f3c8d", "<")
    companions = ("intermediate", "eagle3_intermediate")
    head = "eagle3"
    probes = tuple(Plan("hierarchical-eagle3", *tree, 6) for tree in ((8, 2), (30, 3)))

    def plan(self, settings: DraftSettings) -> Plan:
        return Plan(self.name, *settings.inner_tree, settings.least)

    def drafter(
        self, plan: Plan, models: TwoModels, trees: Callable[[str], Drafter], settings: DraftSettings
    ) -> Drafter:
        vocab_size = models.target.config.vocab_size
        return Speculator(models.intermediate, trees("intermediate"), plan.min_draft_length, vocab_size)
