"""No drafter: the target decodes token by token, as every method is compared with."""

from specquant.decoding.method import Method, ModelCosts, Plan, Prediction, Statistics
from specquant.tables.marks import Mark


class Autoregressive(Method):
    name = "autoregressive"
    mark = Mark("autoregressive", "#949494", "o")
    place = 0
    probes = (Plan("autoregressive"),)

    def drafter(self, plan, models, trees, settings) -> None:
        return None

    def plans(self, costs, statistics, min_draft_lengths) -> list[Plan]:
        return [Plan(self.name)]

    def accepted_length(self, plan: Plan, statistics: Statistics) -> float:
        return 1.0

    def predict(self, plan: Plan, costs: ModelCosts, statistics: Statistics) -> Prediction:
        return Prediction(1.0, 1, 0.0, 0.0, costs.target.verify(1))
