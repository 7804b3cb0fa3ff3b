#!/usr/bin/env bash
# Sets up a rented GPU machine (Ubuntu or Debian, NVIDIA driver installed): ComfyUI with this pack, or the command line
# alone. Run again it goes on from where it was. docker/README.md says what it installs, and what was tried.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: provision.sh [--headless] [--dir FOLDER] [--models "NAME ..."] [--source URL_OR_FOLDER] [--port N] [--no-start]

  --headless   only the command line `wantrain`, no ComfyUI
  --dir        where everything goes (default: /workspace)
  --models     model sets to download, such as t2v-a14b; "" for none (default: asked in a terminal, else none)
  --source     where the pack comes from (default: the folder of this script, or the public repository)
  --port       of ComfyUI's page (default: 8188); it listens on this machine alone, so reach it through an SSH tunnel
  --no-start   install, and start nothing

PyTorch is chosen by the NVIDIA driver. UV_TORCH_BACKEND=cu126 (or cpu, cu130, ...) in the environment chooses another one.
TEXT
}

readonly PACK_URL=https://github.com/ComfyUI-WanTrain/ComfyUI-WanTrain
readonly COMFYUI_URL=https://github.com/comfyanonymous/ComfyUI
readonly UV_URL=https://astral.sh/uv/install.sh
readonly TORCH_URL=https://download.pytorch.org/whl/
readonly NEEDED_GB=10 NEEDED_GB_CPU=3 # see docker/README.md

headless=false start=true dir=/workspace port=8188 models=ask source='' updated=false

say() { printf '\n== %s\n' "$*"; }

fail() { printf '%s\n' "$*" >&2; exit 1; }

read_options() {
    while [ $# -gt 0 ]; do
        case $1 in
        --headless) headless=true ;;
        --no-start) start=false ;;
        --dir | --models | --source | --port)
            [ $# -gt 1 ] || { echo "$1 needs a value" >&2; exit 2; }
            printf -v "${1#--}" '%s' "$2"
            shift ;;
        -h | --help) usage; exit 0 ;;
        *) echo "unknown option: $1" >&2; usage >&2; exit 2 ;;
        esac
        shift
    done
    if [ -z "$source" ]; then # BASH_SOURCE is empty where the script comes through a pipe
        source=$(cd "$(dirname "${BASH_SOURCE[0]:-/nowhere/}")/.." 2>/dev/null && pwd) || true
        [ -f "$source/wantrain.py" ] || source=$PACK_URL
    fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else fail "this needs root, and there is no sudo: $*"
    fi
}

install_apt() { # PACKAGE...
    say "installing $*"
    command -v apt-get >/dev/null || fail "there is no apt-get here: install $* with your system's packages, and run this again."
    if ! $updated; then # a broken list of somebody else's, which rented machines have, shall not end everything
        as_root apt-get update -qq || echo "(going on with the package lists that are there)"
        updated=true
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

make_folder() {
    if ! mkdir -p "$dir" 2>/dev/null; then
        as_root mkdir -p "$dir"
        as_root chown "$(id -u):$(id -g)" "$dir"
    fi
    dir=$(cd "$dir" && pwd)
    [ -w "$dir" ] || fail "$(id -un) may not write into $dir: choose another folder with --dir, such as --dir $HOME/wantrain."
    if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
        echo "Everything will belong to root. If $SUDO_USER shall use it, run this without sudo: it asks for sudo where needed."
    fi
    # All of uv's in the same folder: a pod that forgets the rest of its disk keeps its Python, and nothing lies there twice.
    export UV_CACHE_DIR=${UV_CACHE_DIR:-$dir/.uv/cache} UV_PYTHON_INSTALL_DIR=${UV_PYTHON_INSTALL_DIR:-$dir/.uv/python}
    PATH=$dir/.uv/bin:$PATH
}

check_disk() {
    local needed=$NEEDED_GB free
    [ "${UV_TORCH_BACKEND:-}" = cpu ] && needed=$NEEDED_GB_CPU
    free=$(df -Pk "$dir" | awk 'NR == 2 { printf "%d", $4 * 1024 / 1e9 }')
    [ -f "$dir/.uv/done" ] || [ "$free" -ge "$needed" ] ||
        fail "$dir has $free GB free, and the packages need $needed: rent a larger disk, or choose another folder with --dir."
}

install_programs() {
    local missing=()
    command -v git >/dev/null || missing+=(git ca-certificates)
    command -v curl >/dev/null || missing+=(curl ca-certificates)
    command -v g++ >/dev/null || missing+=(g++) # Triton and torch.compile build with gcc and g++
    [ ${#missing[@]} = 0 ] || install_apt "${missing[@]}"
}

install_uv() {
    command -v uv >/dev/null && return
    say "installing uv"
    curl -LsSf --retry 2 "$UV_URL" | UV_INSTALL_DIR=$dir/.uv/bin UV_NO_MODIFY_PATH=1 sh && return
    say "its own installer can't be had, so from PyPI"
    install_apt python3 python3-venv
    python3 -m venv "$dir/.uv/pip"
    "$dir/.uv/pip/bin/pip" install --quiet uv
    mkdir -p "$dir/.uv/bin"
    ln -sf "$dir/.uv/pip/bin/uv" "$dir/.uv/bin/uv"
}

fetch() { # URL_OR_FOLDER FOLDER
    local from=$1
    [ -d "$from" ] && from=$(cd "$from" && pwd -P)
    [ "$from" = "$(readlink -f "$2")" ] && return # started from where it shall be
    if [ -e "$2/.git" ]; then
        git -C "$2" pull --ff-only --quiet || echo "$2 stays as it is; git says why."
    elif [ -d "$from" ] && [ ! -e "$from/.git" ]; then # an unpacked archive
        mkdir -p "$2" && cp -r "$from/." "$2"
    elif [ -e "$2" ]; then
        echo "$2 is not from git, and stays as it is."
    else # whole or not at all
        [ -d "$from" ] && from=file://$from
        rm -rf "$dir/.part" && git clone --quiet --depth 1 "$from" "$dir/.part"
        mkdir -p "$(dirname "$2")" && mv "$dir/.part" "$2"
    fi
}

make_python() { # with pip, which ComfyUI-Manager and the advice of `wantrain doctor` use
    "$python" -c '' 2>/dev/null && return
    # uv's own Python brings the headers that Triton compiles against; a system's Python has them in a package of their own.
    uv venv --quiet --clear --seed --managed-python --python 3.12 "$dir/.venv" && return
    say "using the system's Python"
    install_apt python3 python3-dev
    uv venv --quiet --clear --seed --no-managed-python "$dir/.venv"
}

choose_torch() { # the newest that the driver can run; without a driver, as while a container is built, PyPI's
    [ -z "${UV_TORCH_BACKEND:-}" ] || return 0
    unset UV_TORCH_BACKEND # uv takes no empty value
    command -v nvidia-smi >/dev/null || { echo "no NVIDIA driver is seen here"; return 0; }
    if curl -LsfI --max-time 20 -o /dev/null "$TORCH_URL"; then
        export UV_TORCH_BACKEND=auto
    else
        echo "$TORCH_URL does not answer: PyTorch comes from PyPI, which needs a new driver"
    fi
}

install_packages() {
    local wanted=(-e "${pack}[headless,adamw8bit]")
    $headless || wanted+=(-r "$dir/ComfyUI/requirements.txt")
    uv pip install --quiet --python "$python" "${wanted[@]}"
    touch "$dir/.uv/done"
}

get_models() {
    local wantrain=$dir/.venv/bin/wantrain names=()
    if [ "$models" = ask ]; then
        models=
        if [ -t 0 ]; then
            "$wantrain" download --list | grep -v '^ '
            read -r -p "Which models shall be downloaded (names, or nothing)? " models
        fi
    fi
    read -ra names <<<"$models"
    [ ${#names[@]} = 0 ] || "$wantrain" download "${names[@]}" --to "$models_dir"
    say "what is here"
    "$wantrain" doctor --models "$models_dir" --work "$dir" || echo "(see above for what is missing)"
}

main() {
    read_options "$@"
    make_folder
    check_disk
    install_programs
    install_uv
    python=$dir/.venv/bin/python
    if $headless; then
        pack=$dir/ComfyUI-WanTrain models_dir=$dir/models
    else
        say "fetching ComfyUI"
        fetch "$COMFYUI_URL" "$dir/ComfyUI"
        pack=$dir/ComfyUI/custom_nodes/ComfyUI-WanTrain models_dir=$dir/ComfyUI/models
    fi
    say "fetching the pack"
    fetch "$source" "$pack"
    say "installing packages into $dir/.venv"
    make_python
    choose_torch
    install_packages
    mkdir -p "$models_dir"
    get_models
    say "ready"
    if $headless; then
        echo "train with: $dir/.venv/bin/wantrain run"
    elif $start; then
        echo "on your own machine: ssh -L $port:127.0.0.1:$port THIS_MACHINE, then open http://127.0.0.1:$port"
        exec "$python" "$dir/ComfyUI/main.py" --port "$port"
    else
        echo "start with: $python $dir/ComfyUI/main.py --port $port"
    fi
}

main "$@" # at the end: a script that comes through a pipe is read whole before it starts
