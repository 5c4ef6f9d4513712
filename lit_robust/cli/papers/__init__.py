"""The papers' tables and figures: a typed function each, whose options ``lit-robust paper NAME --help`` lists."""

from lit_robust.cli.papers.cache import cache_figure_2, cache_table_1, cache_table_2, cache_table_4
from lit_robust.cli.papers.networks import natural_figures_2_8, natural_transfer, shape_tables_1_2
from lit_robust.cli.papers.pairs import shape_table_3
from lit_robust.cli.papers.representations import representation_figures
from lit_robust.cli.papers.units import shape_table_4

__all__ = [
    "cache_figure_2",
    "cache_table_1",
    "cache_table_2",
    "cache_table_4",
    "natural_figures_2_8",
    "natural_transfer",
    "representation_figures",
    "shape_table_3",
    "shape_table_4",
    "shape_tables_1_2",
]
