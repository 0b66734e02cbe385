"""`python -m tightbox`, which `accelerate launch -m tightbox train …` uses."""

import sys

from tightbox.cli import main

sys.exit(main())
