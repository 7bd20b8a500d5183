#!/usr/bin/env bash
# What a user installs, as a user meets it: builds the wheel, installs it into an empty environment and, from another
# folder, lists and validates the recipes in it and builds a small model. Usage: tests/wheel_check.sh PYTHON
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --wheel --outdir "$work" "$repository" > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" -m venv "$work/venv"
# shellcheck disable=SC2086  # several flags
"$work/venv/bin/pip" install --quiet ${PIP_FLAGS:-} "$work"/coreai_recipes-*.whl
cp -R "$repository/tests/checkpoints/tiny-llama" "$work/checkpoint"

export RECIPE_CACHE=$work/cache  # empty too
mkdir "$work/elsewhere"
cd "$work/elsewhere"
PATH=$work/venv/bin:$PATH
recipe list
recipes=$(cd "$repository/recipes" && for file in *.yaml; do echo "${file%.yaml}"; done)
# shellcheck disable=SC2086  # several names
recipe validate $recipes
recipe new "$work/checkpoint"
recipe build tiny-llama --checkpoint "$work/checkpoint"
recipe run dist/tiny-llama "In the beginning" --max-tokens 8
recipe build gemma4-tiny --no-verify  # its weights are in the wheel
recipe run dist/gemma4-tiny "In the beginning" --draft --max-tokens 8
echo "the wheel works"
