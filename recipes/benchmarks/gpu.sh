#!/usr/bin/env bash
# All that a GPU decides, in under ten minutes: the GPU tests, then the benchmarks, then one table of the targets.
#
#   recipes/benchmarks/gpu.sh                          on the first GPU
#   DEVICE=cpu QUICK=1 recipes/benchmarks/gpu.sh       a rehearsal with tiny networks, about two minutes; no target counts
#
# Nothing is fetched: models are made by name, without published weights, and images are those that packages ship.
# Each part has its own limit and none waits longer than is left of LIMIT seconds, RESERVE of which are for the table;
# parts stand in the order of what their targets are worth. A part that fails does not stop the others; the exit status
# is 1 then. OUTPUT is the folder for what the parts say (NAME.log) and measure (NAME.json); PARTS names some of them.
set -uo pipefail
SECONDS=0
cd "$(dirname "$0")/../.." || exit 2

all='tests activations step_wide short_run autoattack step_narrow step_compiled attack data'
DEVICE=${DEVICE:-cuda} QUICK=${QUICK:-0} LIMIT=${LIMIT:-590} RESERVE=${RESERVE:-25} PYTHON=${PYTHON:-python}
OUTPUT=${OUTPUT:-output/gpu$([[ $QUICK == 0 ]] || echo -quick)} PARTS=${PARTS:-$all}
for name in $PARTS; do
    [[ " $all " == *" $name "* ]] || { echo "error: PARTS has $name; expected some of $all" >&2; exit 2; }
done
mkdir -p "$OUTPUT" || exit 2
if ! "$PYTHON" -c 'import sys, torch; torch.empty(0, device=sys.argv[1])' "$DEVICE" 2> "$OUTPUT/device.log"; then
    echo "error: torch finds no device $DEVICE; see $OUTPUT/device.log" >&2
    exit 2
fi

failed=0 running=
trap '[[ -z $running ]] || kill "$running"; exit 130' INT TERM

# part NAME LIMIT COMMAND…: run it if it is one of PARTS
part() {
    local name=$1 limit=$2 left=$((LIMIT - RESERVE - SECONDS)) started=$SECONDS status how
    shift 2
    [[ " $PARTS " == *" $name "* ]] || return 0
    rm -f "$OUTPUT/$name.json"
    if ((left < 5)); then
        echo "$name: no time left"
        failed=1
        return 0
    fi
    timeout -k 3 $((limit < left ? limit : left)) "$@" > "$OUTPUT/$name.log" 2>&1 < /dev/null &
    running=$!
    wait "$running"
    status=$?
    running=
    if ((status == 0)); then
        echo "$name: done in $((SECONDS - started)) s"
        return 0
    fi
    failed=1
    rm -f "$OUTPUT/$name.json"
    how="status $status"
    ((status == 124 || status == 137)) && how='out of time'
    echo "$name: FAILED after $((SECONDS - started)) s, $how; $OUTPUT/$name.log ends:"
    tail -n 3 "$OUTPUT/$name.log" | sed 's/^/    /'
}

# benchmark NAME LIMIT SCRIPT FLAGS…
benchmark() {
    local name=$1 limit=$2 script=$3
    shift 3
    part "$name" "$limit" "$PYTHON" "recipes/benchmarks/$script.py" --device "$DEVICE" --json "$OUTPUT/$name.json" "$@"
}

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mapfile -t tests < <(grep -rl --include='test_*.py' 'pytest.mark.gpu' tests)
part tests 60 "$PYTHON" -m pytest -q -m gpu "${tests[@]}"

if [[ $QUICK == 1 ]]; then
    half=bf16
    small=(--ways eager compiled --backend aot_eager --batch-size 4 --rounds 2 --updates 1 --image-size 16 --no-passes)
    benchmark activations 60 activations --activations pssilu --ways fused --shape 4 8 8 8 --dtype bfloat16 --rounds 3
    benchmark step_wide 120 train_step --models wrn10_2_relu wrn10_2_pssilu --precisions $half "${small[@]}"
    benchmark step_narrow 60 train_step --models wrn10_2_pssilu --batch-size 4 --rounds 2 --updates 1
    benchmark short_run 60 short_run --epochs 1 --seeds 0 --updates-per-epoch 2
    benchmark autoattack 60 autoattack --trained wrn10_2_pssilu --epochs 1 --attacks apgd-ce --n-examples 4 --rounds 2 \
        --updates-per-epoch 2
    benchmark attack 60 attack --subjects model --model wrn10_2_relu --timing-images 2 --rounds 3 --no-counts
    benchmark data 60 data --archive "$OUTPUT/images.npz" --images 2000 --batches 4 --rounds 1 --measures ours device \
        training --model wrn10_2_relu --train-batch-size 4 --train-steps 1
else
    step=(--channels-last --image-size 32 --updates 1)
    # the first stage of wrn28_10
    benchmark activations 40 activations --activations pssilu psoftplus --shape 256 160 32 32 --dtype bfloat16
    benchmark step_wide 150 train_step --models wrn28_10_relu wrn28_10_pssilu --precisions bf16 --ways eager compiled \
        --no-passes --rounds 3 "${step[@]}"
    benchmark short_run 60 short_run --model wrn10_2_pssilu --amp --channels-last --torchcompile inductor
    benchmark autoattack 80 autoattack --trained resnet18_pssilu --image-size 32 --epochs 6 --amp --channels-last \
        --n-examples 64 --batch-size 64 --rounds 2 --differing 1
    benchmark step_narrow 60 train_step --models resnet18_relu resnet18_pssilu --precisions fp32 tf32 bf16 \
        --batch-size 256 --rounds 5 "${step[@]}"
    benchmark step_compiled 50 train_step --models resnet18_relu resnet18_pssilu --precisions bf16 --ways compiled \
        --batch-size 256 --no-passes --rounds 5 "${step[@]}"
    benchmark attack 25 attack --subjects model --model resnet18_relu --timing-images 256 --no-counts
    benchmark data 40 data --archive "$OUTPUT/images.npz" --images 200000 --batches 200 --rounds 2 --measures ours \
        device mapped training --model resnet18_pssilu --train-batch-size 256 --train-steps 10
fi

echo
"$PYTHON" recipes/benchmarks/gpu_table.py "$OUTPUT" --device "$DEVICE" || failed=1
exit $failed
