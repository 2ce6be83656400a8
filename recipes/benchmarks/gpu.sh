#!/usr/bin/env bash
# GPU tests and benchmarks, 390 seconds of parts, and one table of the targets, which goes into docs/performance.md.
#
#   recipes/benchmarks/gpu.sh                        on the first GPU
#   DATA=FOLDER recipes/benchmarks/gpu.sh            trains on train.npz and test.npz there, CIFAR-10 as image (N, 32,
#                                                    32, 3), uint8, and label (N,), int64; else on handwritten digits
#   PARTS='kernels tests' recipes/benchmarks/gpu.sh  only some parts; the table keeps the figures of earlier calls
#   PYTHONPATH=/FOLDER recipes/benchmarks/gpu.sh     with packages of a folder, on a machine without network:
#                                                    pip install --no-deps --target /FOLDER timm pyautoattack rich
#                                                    markdown-it-py mdurl pygments
#   DEVICE=cpu QUICK=1 recipes/benchmarks/gpu.sh     rehearsal with tiny networks, a few minutes; targets are not judged
#
# Parts in the order of what they are worth, with limits in seconds (600 in a rehearsal): kernels 30, tests 60,
# narrow 35, wide 55, train 120, autoattack 60, data 30. The exit status is 1 if one fails; the others still run. OUTPUT
# is the folder of logs (NAME.log) and figures (NAME.json); give an empty one for a table of one state only. AutoAttack
# attacks the network of the last train part.
set -uo pipefail
DEVICE=${DEVICE:-cuda} QUICK=${QUICK:-0} PYTHON=${PYTHON:-python} PARTS=${PARTS:-}
DATA=${DATA:+$(realpath "$DATA")}
cd "$(dirname "$0")/../.." || exit 2
OUTPUT=$(realpath -m "${OUTPUT:-output/gpu}") && mkdir -p "$OUTPUT" || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$PYTHON" - << 'PYTHON' || exit 2
import importlib.util, sys
missing = [name for name in ('torch', 'torchvision', 'timm', 'safetensors', 'huggingface_hub', 'pyautoattack', 'rich',
                             'yaml', 'jinja2', 'scipy', 'sklearn', 'pytest')
           if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f'these modules are missing: {", ".join(missing)}; install them, or set PYTHONPATH to a folder with them')
PYTHON
failed=0

# part NAME LIMIT COMMAND...
part() {
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    [[ $QUICK == 0 ]] || limit=600
    [[ -z $PARTS || " $PARTS " == *" $name "* ]] || return 0
    if timeout -s INT -k 5 "$limit" "$@" > "$OUTPUT/$name.log" 2>&1 < /dev/null; then
        echo "$name: done in $((SECONDS - started)) s"
    else
        echo "$name: FAILED after $((SECONDS - started)) of $limit s; $OUTPUT/$name.log ends:"
        tail -n 3 "$OUTPUT/$name.log" | sed 's/^/    /'
        failed=1
    fi
}

# benchmark NAME LIMIT SCRIPT FLAGS...: starts no other round in the last seconds
benchmark() {
    local name=$1 limit=$2 script=$3
    shift 3
    part "$name" "$limit" "$PYTHON" "recipes/benchmarks/$script.py" --device "$DEVICE" --json "$OUTPUT/$name.json" \
        --limit "$([[ $QUICK == 0 ]] && echo $((limit - 8)) || echo 500)" "$@"
}

# sizes: shape of the activations (the first stage of wrn28_10), networks, images
shape=(256 160 32 32) wide=wrn28_10 narrow=resnet18 size=32 batch=256 images=100000 examples=512
train=(--epochs 5 --n-pgd 1000) attacks=()
if [[ $QUICK == 1 ]]; then
    shape=(16 16 32 32) wide=wrn10_2 narrow=wrn10_2 size=16 batch=4 images=2000 examples=4
    train=(--epochs 2 --updates-per-epoch 3 --batch-size 8 --n-pgd 8 --val-size 64) attacks=(--attacks apgd-ce)
fi
step=(--precision bf16 --channels-last --no-plain --ways eager captured --image-size "$size" --batch-size "$batch")
train+=(--model "${narrow}_pssilu" --output "$OUTPUT/runs" --experiment "$(date +%s)" --autoattack none)
archive=(--archive "$OUTPUT/images.npz" --images "$images") attacked=()
if [[ -n $DATA ]]; then
    train+=(-c recipes/configs/dai2021_cifar10_linf_real.yaml --dataset "$DATA/train.npz" --test-data "$DATA/test.npz"
            --num-classes 10)
    archive=(--archive "$DATA/train.npz") attacked=(--archive "$DATA/test.npz")
fi

benchmark kernels 30 activations --activations pssilu psoftplus psilu reblu --ways fused --shape "${shape[@]}" \
    --dtype bfloat16 --measures host time --rounds 9
mapfile -t tests < <(grep -rl --include='test_*.py' 'pytest.mark.gpu' tests/{kernels,data,activations,attacks}
    grep -rl --include='test_*.py' 'pytest.mark.gpu' tests/{models,engine,recipes})
# packages of this machine may be newer than those that the tests know
part tests 60 "$PYTHON" -m pytest -v -rP --durations=15 -W default::DeprecationWarning -W default::FutureWarning \
    -m gpu "${tests[@]}"
benchmark narrow 35 train_step --models "${narrow}_relu" "${narrow}_pssilu" --updates 3 --rounds 9 "${step[@]}"
benchmark wide 55 train_step --models "${wide}_relu" "${wide}_pssilu" --updates 1 --rounds 5 "${step[@]}"
benchmark train 120 train_run --tf32 -- "${train[@]}"
mapfile -t runs < <(ls -t "$OUTPUT"/runs/*/model_best.pth.tar 2> /dev/null)
benchmark autoattack 60 autoattack --checkpoint "${runs[0]:-missing}" "${attacked[@]}" --n-examples "$examples" \
    "${attacks[@]}" --batch-size 512 --tf32 --differing "$((examples / 100))"
benchmark data 30 data "${archive[@]}" --batches 100 --rounds 1 --measures training ours \
    --model "${narrow}_pssilu" --train-batch-size "$batch" --train-steps 5

"$PYTHON" recipes/benchmarks/gpu_table.py "$OUTPUT" | tee "$OUTPUT/table.md" || failed=1
exit $failed
