import sys

from cgspn.cli import main

if __name__ == "__main__":
    sys.exit(main())
