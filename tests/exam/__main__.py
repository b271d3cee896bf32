"""``python -m exam``."""

import sys

from exam.exam import main

sys.exit(main())
