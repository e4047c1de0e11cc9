#!/bin/sh
# Finds a Python for install.py and says in one line if there is none. Used by the Makefile:
#     [PYTHON=python3.12] sh requirements/install.sh cpu|gpu [--demo]
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

# Runs on any Python, even version 2.
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

if .venv/bin/python -c "$fits" >/dev/null 2>&1; then
    exec .venv/bin/python requirements/install.py "$@"
fi
if ! "$python" -c pass >/dev/null 2>&1; then
    echo "stargate: no working $python; install Python 3.11 to 3.13, or name one: make PYTHON=python3.12 ..." >&2
    exit 1
fi
if ! "$python" -c "$fits"; then
    version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
    echo "stargate: needs Python 3.11 to 3.13, got $version from $python; name another: make PYTHON=python3.12 ..." >&2
    exit 1
fi
exec "$python" requirements/install.py "$@"
