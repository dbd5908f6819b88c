"""Tables of measurements: their columns, how units of work become rows of one file, and how repeats are told."""

from specquant.tables.intervals import in_each_process, over_processes, ratios
from specquant.tables.parts import Parts
from specquant.tables.table import TABLES, Table

__all__ = ["TABLES", "Parts", "Table", "in_each_process", "over_processes", "ratios"]
