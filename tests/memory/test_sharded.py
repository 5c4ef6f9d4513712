"""Keys spread over ranks: the answers and gradients of one memory."""

import subprocess
import sys
from pathlib import Path


def test_two_ranks_answer_as_one():
    script = Path(__file__).parent / "sharded_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 0 agrees" in done.stderr
    assert "rank 1 agrees" in done.stderr
