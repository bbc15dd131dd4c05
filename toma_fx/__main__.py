"""`python -m toma_fx` is `toma-fx`."""

import sys

from toma_fx.cli.main import main

sys.exit(main())
