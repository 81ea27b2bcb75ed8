"""`python -m pluginapi.conformance`."""

import sys

from pluginapi.conformance.command import main

sys.exit(main())
