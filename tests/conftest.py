"""What tests of the whole way share: tiny toy data, made once."""

import os
from pathlib import Path

import pytest

# Tests run beside each other on few cores, where two threads each would only wait for each other; and a test that forks
# would wait for ever for those of its parent.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("WANDB_SILENT", "true")

REAL = Path(__file__).parents[2] / "shared" / "real"


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Toy data of 101 training and 41 test figures: numbers that neither 2 nor 3 divides."""
    from lit_robust.cli import main

    root = tmp_path_factory.mktemp("toy")
    assert main(["data", "toy", str(root), "--train", "101", "--test", "41", "--severities", "[3]"]) == 0
    return root


@pytest.fixture(scope="session")
def real():
    """The folder of real images and weights beside the repository, where there is one."""
    if not REAL.is_dir():
        pytest.skip("needs the real images and weights of shared/real, which are not part of the repository")
    return REAL
