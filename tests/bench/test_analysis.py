"""The benchmark of analyses runs in its smallest form, and its peers give the same answers; no figure is asserted."""

import re

from lit_robust.cli import main


def test_bench_analysis(capsys):
    words = ["--network", "lit_robust/resnet_tiny", "--size", "32", "--images", "1", "--dissected", "9"]
    assert main(["bench", "analysis", *words]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\| Captum's LayerFeatureAblation \| [\d.e-]+ s .*\| [\d.]+ \|", said)
    assert re.search(r"\| NetDissect-Lite's way \| [\d.e-]+ s .*\| [\d.]+ \|", said)
    assert re.search(r"\| peak memory of ours beyond the network \| [\d.-]+ MiB", said)
