"""Train robust image classifiers, and measure how robust any classifier is, exactly.

The rooms, each a folder; imports point down this list only:

- ``bench`` and ``cli``: the commands; may import everything
- ``report``: results files to tables, plots and one page
- ``callbacks``: which measure on which test set, and the results file; ``evaluate``, all of it in one call
- ``analysis``: studies of a trained network
- ``modules``: the LightningModules, one a training scheme
- ``data``: data modules, one a data set; ``memory``: networks' features, searched for the nearest
- ``models``, ``attacks``, ``metrics``, ``stimuli``, ``shards``: the pure parts
- ``reference``: published constants; ``core``: batch, results, errors, files, seeds and precision

``from lit_robust import evaluate`` imports torch; ``import lit_robust`` alone does not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_robust.callbacks.evaluate import evaluate as evaluate

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "evaluate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lit_robust.callbacks.evaluate import evaluate

    return evaluate
