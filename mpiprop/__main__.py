"""The command line, which listens to signals before anything slow is imported."""

import sys

from mpiprop.run import preemption

if __name__ == "__main__":
    preemption.listen(sys.argv[1:])

from mpiprop.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
