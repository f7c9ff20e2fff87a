"""`python -m dbray` is the command `dbray`."""

from __future__ import annotations

import sys

from dbray.cli import main

sys.exit(main())
