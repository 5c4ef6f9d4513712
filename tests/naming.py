"""Results by their names alone."""

import re
from dataclasses import replace
from pathlib import Path

from lit_robust.core.results import Result, RunResults, named_facets


def named(*parts):
    """Return a result with the facets that its name stands for."""
    result = Result(*parts)
    return replace(result, facets=named_facets(result.dataset, result.metric, result.protocol))


def read_checked(folder: Path) -> RunResults:
    """Return a run's results, whose facets are those that schema 1 would have been read with."""
    found = RunResults.load(folder)
    for result in found.results:
        facets = dict(result.facets)
        if "observer" in facets:
            facets["observer"] = re.sub(r"\W+", "_", facets["observer"])
        assert facets == named_facets(result.dataset, result.metric, result.protocol)
    return found
