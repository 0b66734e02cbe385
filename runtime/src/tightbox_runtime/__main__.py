"""`python -m tightbox_runtime` is the command `tightbox-runtime`."""

import sys

from tightbox_runtime.cli import main

sys.exit(main())
