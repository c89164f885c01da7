#!/usr/bin/env bash
# Check on a GPU what no other machine can show, with one command:
#   tools/gpu_check.sh WHEELS OUT [--data DIR] [--parts 'kernels train']
#                      [--minutes N] [--dry-run]
# WHEELS is what tools/gpu_wheels.sh collected; nothing is downloaded. OUT gets
# summary.txt, log.txt and the records, each as it comes. DIR is BCCD or laid
# out alike. Parts, in their order:
#   mmcv     its operators are compiled, in the background
#   kernels  tests of the kernels, and their times
#   tests    all other tests that are marked gpu
#   train    steps of RetinaNet and Faster R-CNN, 800 x 1333, batch 4, float32
#   amp      the same in mixed precision
#   sweep    RetinaNet-R18 on DIR: trained in float, at 4 and 2 bits
# A part that is not done when the time is up is cut off; name it and those
# after it with --parts in the next call. --dry-run makes every command small
# and lets it run on a CPU: that checks this script, and measures nothing.
set -uo pipefail
wheels=$(realpath -m "${1:?WHEELS is missing}") out=$(realpath -m "${2:?OUT is missing}")
shift 2
parts='mmcv kernels tests train amp sweep' data='' minutes=9 dry=''
while (($#)); do
    case $1 in
        --data) data=$(realpath -m "$2"); shift 2 ;;
        --parts) parts="mmcv $2"; shift 2 ;;
        --minutes) minutes=$2; shift 2 ;;
        --dry-run) dry=1; shift ;;
        *) echo "error: $1: no such flag" >&2; exit 2 ;;
    esac
done
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
work=${TMPDIR:-/tmp}/lcq_gpu_check
mkdir -p "$out" "$work"
deadline=$((SECONDS + minutes * 60))
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD MPLBACKEND=Agg
: >"$out/summary.txt"

note() { echo "$(date +%H:%M:%S) $*" | tee -a "$out/summary.txt" "$out/log.txt"; }
finish() {
    note "ends after $SECONDS s"
    printf '\n--- summary ---\n'
    cat "$out/summary.txt"
}
trap finish EXIT
trap 'note "cut off from outside"; kill $running 2>/dev/null; exit 1' TERM INT
running=

# part NAME LIMIT COMMAND...: run it for LIMIT seconds at most, or less.
part() {
    local name=$1 limit=$2 start=$SECONDS code
    shift 2
    [[ $dry ]] && limit=600
    limit=$((deadline - SECONDS < limit ? deadline - SECONDS : limit))
    if ((limit < 5)); then note "$name: not started, the time is up"; return 1; fi
    echo "=== $name: $*" >>"$out/log.txt"
    timeout -k 5 "$limit" "$@" >>"$out/log.txt" 2>&1 &
    running=$!
    wait $running
    code=$?
    case $code in
        0) note "$name: ok, $((SECONDS - start)) s${dry:+, a dry run}" ;;
        124 | 137) note "$name: cut off after $limit s" ;;
        *) note "$name: FAILED with $code after $((SECONDS - start)) s, see log.txt" ;;
    esac
    return $code
}
wanted() { [[ " $parts " == *" $1 "* ]]; }
# ready NAME: say why a part cannot run.
ready() {
    wanted "$1" || return 1
    if [[ ! $dry && ! $gpu ]]; then note "$1: skipped: no GPU"; return 1; fi
}

{ read -r versions; read -r gpu; } < <("$python" -c 'import sys, torch
print("Python", sys.version.split()[0] + ", torch", torch.__version__)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>>"$out/log.txt")
note "GPU: ${gpu:-none}, ${versions:-no torch}"
if [[ $gpu && ! $dry && ! -d $work/site ]]; then
    part wheels 60 "$python" -m pip install --quiet --no-index --no-deps \
        --no-compile --no-cache-dir --target "$work/site" "$wheels"/*.whl || exit 1
fi
[[ $dry ]] || PYTHONPATH+=:$work/site

# mmcv: unpacked and compiled in place. It goes on between two calls, and what
# it made is packed for a later machine: put mmcv_ext.tar.xz.* into WHEELS.
unpack_mmcv() {
    mkdir -p "$1" && tar -xzf "$wheels"/mmcv-*.tar.gz -C "$1" --strip-components=1
}
start_mmcv() {
    mkdir -p "$work/mmcv"
    if [[ -e $work/mmcv.started ]]; then return; fi
    unpack_mmcv "$work/mmcv" || return
    touch "$work/mmcv.started"
    if compgen -G "$wheels/mmcv_ext.tar.xz.*" >/dev/null; then
        cat "$wheels"/mmcv_ext.tar.xz.* | tar -xJ -C "$work/mmcv"
        echo $? >"$work/mmcv.done"
        return
    fi
    export MMCV_WITH_OPS=1 FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 MAX_JOBS=12
    export CFLAGS='-O3 -DNDEBUG -g0' CXXFLAGS='-O3 -DNDEBUG -g0'
    setsid bash -c 'cd "$1/mmcv" && "$2" setup.py build_ext --inplace
        echo $? >"$1/mmcv.done"' _ "$work" "$python" >"$work/mmcv.log" 2>&1 &
    unset MMCV_WITH_OPS FORCE_CUDA TORCH_CUDA_ARCH_LIST MAX_JOBS CFLAGS CXXFLAGS
}
# need_mmcv: wait until it is there, once, and use it from then on.
need_mmcv() {
    [[ $dry || $PYTHONPATH == *"$work/mmcv"* ]] && return
    while [[ ! -e $work/mmcv.done ]] && ((SECONDS < deadline - 5)); do sleep 2; done
    if [[ ! -e $work/mmcv.done ]]; then
        note "mmcv: still being compiled; repeat with --parts on this machine"
        return 1
    fi
    PYTHONPATH=$work/mmcv:$PYTHONPATH
    if ! part mmcv 60 "$python" -c 'import mmcv.ops'; then
        tail -40 "$work/mmcv.log" >>"$out/log.txt"
        return 1
    fi
    compgen -G "$wheels/mmcv_ext.tar.xz.*" >/dev/null ||
        (cd "$work/mmcv" && strip --strip-debug mmcv/_ext*.so
            tar -c mmcv/_ext*.so | xz -T4 -3 | split -b 15M - "$out/mmcv_ext.tar.xz.")
}
# Until then the kernels run beside operators that only say they are missing.
stub=$work/stub
if compgen -G "$wheels/mmcv-*.tar.gz" >/dev/null && unpack_mmcv "$stub"; then
    cat >"$stub/mmcv/_ext.py" <<'STUB'
def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise RuntimeError(f'{name}: mmcv is still being compiled')

    return missing
STUB
fi
if wanted mmcv && [[ ! $dry ]]; then
    if [[ $gpu ]] && command -v nvcc >/dev/null; then
        start_mmcv
    else
        note 'mmcv: skipped: no GPU, or no nvcc'
    fi
fi

pytest=("$python" -m pytest -p no:cacheprovider --maxfail=20)
benchmark=("$python" tools/benchmark.py)
if ready kernels; then
    before=$PYTHONPATH
    [[ -e $work/mmcv.done ]] && need_mmcv || PYTHONPATH=$stub:$PYTHONPATH
    if [[ $dry ]]; then
        part kernels/tests 300 "${pytest[@]}" tests/gpu/test_gpu_kernels.py -k 'waits or half'
        sizes=(--size 4096 --rounds 1) dtypes=float32
    else
        part kernels/tests 150 "${pytest[@]}" tests/gpu/test_gpu_kernels.py -m gpu
        part kernels/others 90 "${pytest[@]}" tests/test_kernels.py -k triton
        sizes=(--size $((2 ** 27)) --rounds 30) dtypes='float32 bfloat16'
    fi
    for dtype in $dtypes; do
        part "kernels/$dtype" 120 "${benchmark[@]}" kernels "${sizes[@]}" \
            --dtype "$dtype" --out "$out/kernels_$dtype.json"
    done
    [[ $PYTHONPATH == "$stub":* ]] && PYTHONPATH=$before
fi

if ready tests && need_mmcv; then
    only=(-m gpu --ignore tests/gpu/test_gpu_kernels.py)
    [[ $dry ]] && only=(-k 'calibration or features')
    part tests 200 "${pytest[@]}" tests/gpu "${only[@]}"
fi

detectors=(mmdet::retinanet/retinanet_r50_fpn_1x_coco.py
    mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py)
steps=(--size 800 1333 --batch-size 4 --rounds 10)
if [[ $dry ]]; then
    detectors=(configs/toy/retinanet_r18_toy.py)
    steps=(--size 64 96 --batch-size 2 --rounds 1)
fi
for precision in train amp; do
    ready $precision && need_mmcv || continue
    if [[ $dry && $precision == amp ]]; then note 'amp: skipped: no GPU'; continue; fi
    toy=$work/toy_coco
    [[ -d $toy ]] || { rm -rf "$toy.new"
        part data 90 "$python" tools/make_toy_coco.py "$toy.new" --images 100 &&
            mv "$toy.new" "$toy"; } || continue
    flags=("${steps[@]}" --out "$out/$precision.json" --cfg-options
        model.backbone.frozen_stages=-1 model.backbone.norm_eval=False
        train_dataloader.dataset.type=ToyCocoDataset
        train_dataloader.dataset.data_root="$toy/"
        train_dataloader.num_workers=0 train_dataloader.persistent_workers=False)
    [[ $precision == amp ]] && flags=(--amp "${flags[@]}")
    part $precision 150 "${benchmark[@]}" train "${detectors[@]}" "${flags[@]}"
done

if ! ready sweep; then
    :
elif [[ ! $data ]]; then
    note 'sweep: skipped: no --data'
elif need_mmcv; then
    # The detector of the paper's size, and whole images.
    options=(train_dataloader.dataset.dataset.data_root="$data/"
        {val,test}_dataloader.dataset.data_root="$data/"
        {val,test}_evaluator.ann_file="$data/annotations/instances_test.json")
    if [[ $dry ]]; then
        options+=(train_dataloader.dataset.times=1 train_cfg.max_epochs=1
            param_scheduler=None model.backbone.base_channels=8
            model.neck.in_channels='[8,16,32,64]')
        scale='(64,48)' bits='32 4' rows=(--no-train)
    else
        options+=(train_dataloader.num_workers=10 model.backbone.base_channels=64
            model.neck.in_channels='[64,128,256,512]' model.neck.out_channels=256
            model.bbox_head.{in_channels,feat_channels}=256
            model.bbox_head.stacked_convs=4)
        scale='(640,480)' bits='32 4 2' rows=()
    fi
    options+=(train_dataloader.dataset.dataset.pipeline.2.scale="$scale"
        {val,test}_dataloader.dataset.pipeline.1.scale="$scale")
    float=$work/float
    part sweep/float 400 "$python" tools/train.py configs/bccd/retinanet_r18_bccd.py \
        --work-dir "$float" --resume --cfg-options "${options[@]}" &&
        part sweep 400 "$python" tools/sweep.py \
            configs/bccd/retinanet_r18_lcq_4bit_bccd.py --bits $bits "${rows[@]}" \
            --work-dir "$work/sweep" --cfg-options "${options[@]}" \
            load_from="$(cat "$float/last_checkpoint")"
    cp "$work/sweep/report.json" "$out/sweep.json" 2>/dev/null
fi
if [[ ! $dry ]]; then
    for record in "$out"/kernels_*.json "$out"/train.json "$out"/amp.json; do
        [[ -e $record ]] && "$python" -m lcq_mmdet.benchmark.targets "$record" |
            tee -a "$out/summary.txt"
    done
fi
