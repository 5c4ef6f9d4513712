"""What tests of the whole way share: tiny toy data, made once."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from tempfile import gettempdir

import pytest

# Tests run in parallel on few cores, where two threads each would only wait for each other; and a test that forks
# would wait for ever for those of its parent.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("WANDB_SILENT", "true")
# A shell starts what runs in its background deaf to Ctrl-C, which some tests send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

REAL = Path(__file__).parents[2] / "shared" / "real"


FUZZ_ATTEMPTS = 400


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz-attempts",
        type=int,
        default=None,
        metavar="N",
        help=f"damaged inputs that each fuzz test tries ({FUZZ_ATTEMPTS}); with it, what became of them is printed",
    )
    parser.addoption(
        "--auto-precision",
        choices=("bf16", "fp32"),
        default=None,
        help="what `auto` means in all tests, as on a machine that is fast or slow in bf16; by default this machine's",
    )


def pytest_configure(config):
    if (precision := config.getoption("--auto-precision")) is None:
        return
    from lit_robust.core.hardware import FILE, gain_key, read_processor

    if precision == "bf16" and not read_processor().bf16_flags:
        raise pytest.UsageError("--auto-precision is bf16, which this processor has no instructions for: give fp32.")
    # As if the gain had been measured, for the processes that tests start, too.
    cache = Path(gettempdir()) / f"lit-robust-tests-{precision}"
    (cache / FILE).parent.mkdir(parents=True, exist_ok=True)
    (cache / FILE).write_text(json.dumps({gain_key(): 2.0 if precision == "bf16" else 0.5}))
    os.environ["XDG_CACHE_HOME"] = str(cache)


@pytest.fixture
def fuzz_attempts(pytestconfig):
    """How many damaged inputs a fuzz test tries: few by default, `--fuzz-attempts` for more."""
    asked = pytestconfig.getoption("--fuzz-attempts")
    return FUZZ_ATTEMPTS if asked is None else asked


@pytest.fixture
def fuzz_table(request):
    """A counter of (kind of damage, outcome), printed at the end of a run with `--fuzz-attempts`."""
    table = Counter()
    yield table
    rows = [[kind, outcome, count] for (kind, outcome), count in sorted(table.items())]
    request.node.user_properties.append(("fuzz", rows))


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--fuzz-attempts") is None:
        return
    # The reports of a test's end, as a fixture adds to them; they come from the processes of pytest-xdist, too.
    for report in terminalreporter.getreports(""):
        for name, rows in report.user_properties:
            if name == "fuzz" and report.when == "teardown":
                terminalreporter.section(f"fuzz: {report.nodeid}")
                kinds = dict.fromkeys(kind for kind, _, _ in rows)
                outcomes = sorted({outcome for _, outcome, _ in rows})
                counts = {(kind, outcome): count for kind, outcome, count in rows}
                terminalreporter.write_line("| kind | " + " | ".join(outcomes) + " |")
                terminalreporter.write_line("|---|" + "---:|" * len(outcomes))
                for kind in kinds:
                    cells = [str(counts.get((kind, outcome), 0)) for outcome in outcomes]
                    terminalreporter.write_line(f"| {kind} | " + " | ".join(cells) + " |")


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Toy data of 101 training and 41 test figures: numbers that neither 2 nor 3 divides."""
    from lit_robust.cli import main

    root = tmp_path_factory.mktemp("toy")
    assert main(["data", "toy", str(root), "--train", "101", "--test", "41", "--severities", "[3]"]) == 0
    return root


@pytest.fixture(scope="session")
def real():
    """The folder of real images and weights next to the repository, where there is one."""
    if not REAL.is_dir():
        pytest.skip("needs the real images and weights of shared/real, which are not part of the repository")
    return REAL
