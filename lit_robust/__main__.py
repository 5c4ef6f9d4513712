"""``python -m lit_robust`` is ``lit-robust``; ranks that Lightning starts come in here."""

import sys

from lit_robust.cli import main

if __name__ == "__main__":
    sys.exit(main())
