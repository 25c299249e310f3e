# To be sourced: installs uv into the environment $1, and gives it pip's settings, which it does not read.
setting() { "$1/bin/pip" config get "global.$2" 2>/dev/null || true; }
"$1/bin/pip" install --quiet uv
export UV_FIND_LINKS="${UV_FIND_LINKS:-$(setting "$1" find-links)}"
export UV_EXTRA_INDEX_URL="${UV_EXTRA_INDEX_URL:-$(setting "$1" extra-index-url)}"
export UV_INDEX_STRATEGY=unsafe-best-match UV_SYSTEM_CERTS=1
# Modules are compiled to bytecode once, not again by every process that a test starts.
export PYTHONDONTWRITEBYTECODE=
