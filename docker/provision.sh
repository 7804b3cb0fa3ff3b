#!/usr/bin/env bash
# Sets up a rented GPU machine (Ubuntu or Debian, NVIDIA driver installed): ComfyUI with this pack, or the command line
# alone. Run again it goes on from where it was.
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
TEXT
}

headless=false start=true dir=/workspace port=8188 models=ask
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -f "$source/wantrain.py" ] || source=https://github.com/ComfyUI-WanTrain/ComfyUI-WanTrain
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

say() { printf '\n== %s\n' "$*"; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

need() { # programs that are missing, as apt packages
    local missing=()
    command -v git >/dev/null || missing+=(git)
    command -v curl >/dev/null || missing+=(curl ca-certificates)
    command -v gcc >/dev/null || missing+=(gcc libc6-dev) # Triton compiles its launchers with it
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    as_root apt-get update -qq
    as_root apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

clone() { # URL_OR_FOLDER FOLDER
    if [ -d "$1" ] && [ ! -d "$1/.git" ]; then # an unpacked archive
        mkdir -p "$2" && cp -r "$1/." "$2"
    elif [ -d "$2/.git" ]; then
        git -C "$2" pull --ff-only --quiet || echo "$2 is left as it is: it has changes of its own"
    else
        git clone --quiet --depth 1 "$1" "$2"
    fi
}

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
need
command -v uv >/dev/null || { say "installing uv"; curl -LsSf https://astral.sh/uv/install.sh | sh; PATH="$HOME/.local/bin:$PATH"; }

if $headless; then
    pack=$dir/ComfyUI-WanTrain models_dir=$dir/models
else
    say "fetching ComfyUI"
    clone https://github.com/comfyanonymous/ComfyUI "$dir/ComfyUI"
    pack=$dir/ComfyUI/custom_nodes/ComfyUI-WanTrain models_dir=$dir/ComfyUI/models
fi
say "fetching the pack"
clone "$source" "$pack"

say "installing packages into $dir/.venv"
python=$dir/.venv/bin/python
# uv's own Python brings the headers that Triton compiles against; a system's Python has them in a package of their own.
[ -x "$python" ] || uv venv --quiet --managed-python --python 3.12 "$dir/.venv" || {
    say "using the system's Python"
    as_root apt-get install -y -qq --no-install-recommends python3 python3-dev
    uv venv --quiet "$dir/.venv"
}
install() { uv pip install --quiet --python "$python" "$@"; }
$headless || install -r "$dir/ComfyUI/requirements.txt"
install -e "$pack[headless,adamw8bit]"

mkdir -p "$models_dir"
say "what is here"
"$dir/.venv/bin/wantrain" doctor --models "$models_dir" || echo "(see above for what is missing)"

if [ "$models" = ask ]; then
    models=
    if [ -t 0 ]; then
        "$dir/.venv/bin/wantrain" download --list | grep -v '^ '
        read -r -p "Which models shall be downloaded (names, or nothing)? " models
    fi
fi
if [ -n "$models" ]; then
    # shellcheck disable=SC2086 # several names
    "$dir/.venv/bin/wantrain" download $models --to "$models_dir"
fi

say "ready"
if $headless; then
    echo "train with: $dir/.venv/bin/wantrain run"
elif $start; then
    echo "on your own machine: ssh -L $port:127.0.0.1:$port THIS_MACHINE, then open http://127.0.0.1:$port"
    exec "$python" "$dir/ComfyUI/main.py" --port "$port"
else
    echo "start with: $python $dir/ComfyUI/main.py --port $port"
fi
