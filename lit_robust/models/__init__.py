"""Networks by name that take images in [0, 1] and normalise inside."""

from lit_robust.models.network import Classifier, Network, build_classifier
from lit_robust.models.weights import check_fit, load_weights, weights_digest

__all__ = ["Classifier", "Network", "build_classifier", "check_fit", "load_weights", "weights_digest"]
