"""`python -m mengya`, so that torchrun can start it: `torchrun --nproc-per-node 2 -m mengya run recipe.toml`."""

import sys

from mengya.cli import main

sys.exit(main())
