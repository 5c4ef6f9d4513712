"""Two ranks take the step of one rank on the joined batch, batch norm synchronised, for every training scheme."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = str(Path(__file__).with_name("two_ranks.py"))


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for world, launcher in ((1, []), (2, ranks)):
        out = folder / f"{world}.pt"
        done = subprocess.run(
            [sys.executable, *launcher, SCRIPT, str(out)], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[world] = torch.load(out, weights_only=True)
    return found


@pytest.mark.parametrize("scheme", ["standard", "adversarial", "advprop", "trades"])
def test_the_step_is_that_of_the_joined_batch(steps, scheme):
    one, two = (steps[world][scheme]["state"] for world in (1, 2))
    assert one.keys() == two.keys()
    # A random start or target is the sample's, whichever rank it is on.
    # The ranks' sums are added in another order: one step of SGD agrees to float tolerance.
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_attack_adds_no_communication(steps):
    buckets = {scheme: found["buckets"] for scheme, found in steps[2].items()}
    assert all(found["attack"] == 0 for found in steps[2].values())
    # A step reduces each bucket of gradients once, as a standard step does; AdvProp's twin norms do not fill another.
    assert buckets["standard"] > 0
    assert set(buckets.values()) == {buckets["standard"]}
