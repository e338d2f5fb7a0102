# Sourced by tools/demo and tools/test: mpiprop in a virtual environment of its own (VENV, default .venv in this clone)
# with the versions of constraints.txt, and MPI settings for one host. Quick when nothing has changed since the last time.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
export PIP_DISABLE_PIP_VERSION_CHECK=1

die() {
    echo "${0##*/}: $*" >&2
    exit 2
}

find_python() {
    local python
    for python in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13 python3.14 python; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    die "needs Python 3.11 or newer (PYTHON=... says where)"
}

install() {
    local python cpu=() extras=test
    python=$(find_python)
    echo "setting up $venv (once)"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv" \
        || die "$python -m venv failed (Debian and Ubuntu: apt install python3-venv)"
    # Without a GPU, PyTorch's own index has a build of the same version without gigabytes of CUDA.
    local index=https://download.pytorch.org/whl/cpu
    if ! command -v nvidia-smi >/dev/null && "$venv/bin/python" - "$index/torch/" 2>/dev/null <<'PY'
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=5)
PY
    then cpu=(--extra-index-url "$index"); fi
    command -v mpirun >/dev/null || extras=test,mpi
    "$venv/bin/python" -m pip install --quiet --constraint "$root/tools/constraints.txt" ${cpu[@]+"${cpu[@]}"} \
        --editable "$root[$extras]" || die "installing failed; run it again to go on from there"
}

stamp=$(cat "$root"/{setup.cfg,pyproject.toml,tools/constraints.txt} | cksum)
if [ "$(cat "$venv/mpiprop.stamp" 2>/dev/null)" != "$stamp $root" ]; then
    install
    echo "$stamp $root" >"$venv/mpiprop.stamp"
fi

export PATH=$venv/bin:$PATH
set -a
. "$root/tools/mpi.env"
set +a
