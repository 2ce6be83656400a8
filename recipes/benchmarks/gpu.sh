#!/usr/bin/env bash
# GPU tests and benchmarks in under ten minutes, and one table of the targets.
#
#   recipes/benchmarks/gpu.sh                        on the first GPU
#   DEVICE=cpu QUICK=1 recipes/benchmarks/gpu.sh     rehearsal with tiny networks, a few minutes; targets are not judged
#
# Each part has a limit in seconds, 600 in a rehearsal. The exit status is 1 if one fails; the others still run. OUTPUT
# is the folder of the logs (NAME.log) and the figures (NAME.json). PARTS selects parts by name.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
DEVICE=${DEVICE:-cuda} QUICK=${QUICK:-0} PYTHON=${PYTHON:-python} PARTS=${PARTS:-} OUTPUT=${OUTPUT:-output/gpu}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$OUTPUT" && rm -f "$OUTPUT"/*.json || exit 2
failed=0

# part NAME LIMIT COMMAND...
part() {
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    [[ $QUICK == 0 ]] || limit=600
    [[ -z $PARTS || " $PARTS " == *" $name "* ]] || return 0
    if timeout -k 3 "$limit" "$@" > "$OUTPUT/$name.log" 2>&1 < /dev/null; then
        echo "$name: done in $((SECONDS - started)) s"
    else
        echo "$name: FAILED after $((SECONDS - started)) of $limit s; $OUTPUT/$name.log ends:"
        tail -n 3 "$OUTPUT/$name.log" | sed 's/^/    /'
        failed=1
    fi
}

# benchmark NAME LIMIT SCRIPT FLAGS...
benchmark() {
    local name=$1 limit=$2 script=$3
    shift 3
    part "$name" "$limit" "$PYTHON" "recipes/benchmarks/$script.py" --device "$DEVICE" --json "$OUTPUT/$name.json" "$@"
}

# sizes: shape of the activations (by default the first stage of wrn28_10), networks, images
shape=(256 160 32 32) wide=wrn28_10 narrow=resnet18 size=32 batch=128 images=200000 examples=64
backend=inductor attacks=()
if [[ $QUICK == 1 ]]; then
    shape=(16 16 32 32) wide=wrn10_2 narrow=wrn10_2 size=16 batch=4 images=2000 examples=4 backend=aot_eager
    attacks=(--attacks apgd-ce)
fi
step=(--channels-last --image-size "$size" --batch-size "$batch" --updates 1)

mapfile -t tests < <(grep -rl --include='test_*.py' 'pytest.mark.gpu' tests)
part tests 60 "$PYTHON" -m pytest -q -m gpu "${tests[@]}"
benchmark activations 45 activations --activations pssilu psoftplus --ways fused --shape "${shape[@]}" \
    --dtype bfloat16 --rounds 9
benchmark step_wide 160 train_step --models "${wide}_relu" "${wide}_pssilu" --precisions bf16 --ways eager compiled \
    --backend "$backend" --no-passes --rounds 3 "${step[@]}"
benchmark autoattack 90 autoattack --trained "${narrow}_pssilu" --image-size "$size" --epochs 4 \
    --n-examples "$examples" "${attacks[@]}" --batch-size 64 --rounds 2 --differing 1
benchmark step_narrow 120 train_step --models "${narrow}_relu" "${narrow}_pssilu" --precisions fp32 bf16 \
    --rounds 3 "${step[@]}"
benchmark attack 30 attack --subjects model --model "${narrow}_relu" --timing-images "$batch" --no-counts --rounds 5
benchmark data 60 data --archive "$OUTPUT/images.npz" --images "$images" --batches 200 --rounds 1 \
    --measures ours training --model "${narrow}_pssilu" --train-batch-size "$batch" --train-steps 5

"$PYTHON" recipes/benchmarks/gpu_table.py "$OUTPUT" | tee "$OUTPUT/table.md" || failed=1
exit $failed
