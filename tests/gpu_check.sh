#!/bin/sh
# What the first hour on a GPU should do, each part a call of at most ten minutes:
#
#     tests/gpu_check.sh [--dry-run] PART OUT
#
#     tests       the tests marked `cuda` but for those that compile
#     compiled    those that compile
#     layouts     training step in NCHW and channels_last; float32, TF32 and bf16; as it is and as a CUDA graph
#     paper       bench at the paper's size against the reference backend; with bf16 also compiled and as a CUDA graph
#     study       the same at the size of the studies
#     training    a short run on the simulated pair, then its resumption
#     bench, all  layouts, paper and study; all of these
#
# OUT/gpu_check.json and OUT/gpu_check.md hold what all calls so far have found, each part with its device and date;
# OUT/gpu_check/PART.log holds what its commands said.  --dry-run (or GPU=-1) does it on the CPU at tiny sizes.
# The exit code is 0 if every part has ended well.
#
# Environment: GPU, the device's number (0); PYTHON (.venv/bin/python); JOBS, test processes at a time (4);
# SCENES, the folder of the simulated pair (OUT/gpu_check/scenes); TESTS, what pytest looks through (tests).
set -u

GPU=${GPU:-0}
[ "${1:-}" = --dry-run ] && GPU=-1 && shift
[ $# -eq 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
case $1 in
    all) PARTS="tests compiled layouts paper study training" ;;
    bench) PARTS="layouts paper study" ;;
    tests|compiled|layouts|paper|study|training) PARTS=$1 ;;
    *) echo "There is no part '$1'. Choose tests, compiled, layouts, paper, study, training, bench or all." >&2; exit 2 ;;
esac
mkdir -p "$2/gpu_check" && OUT=$(cd "$2" && pwd) && cd "$(dirname "$0")/.." || exit 2
WORK=$OUT/gpu_check SCENES=${SCENES:-$OUT/gpu_check/scenes} TESTS=${TESTS:-tests}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

if [ "$GPU" -lt 0 ]; then
    SMALL="--small --repeats 1" FEW=1 MORE=2 PROCESSES="-p no:xdist"
    WIDTHS="--patch_size 5 --pro_dim 8 --GIN_ch 4 --mmirn_filters 2 --training_sample_ratio 0.2 --re_ratio 1"
else
    SMALL="" WIDTHS="" FEW=5 MORE=10
    PROCESSES="-n ${JOBS:-4} --dist loadgroup"
fi

limited() {                    # SECONDS COMMAND ...: it is interrupted, as by Ctrl-C, after so long
    seconds=$1; shift
    if command -v timeout >/dev/null; then timeout -s INT -k 10 "$seconds" "$@"; else "$@"; fi
}

marked() {                     # FOLDER EXPRESSION: tests marked `cuda` whose names fit
    limited 580 "$PYTHON" -m pytest -q $PROCESSES -m cuda -k "$2" --junitxml "$WORK/$1/tests.xml" "$TESTS"
}

bench() {                      # FOLDER FLAG ...
    folder=$1; shift
    limited 580 "$PYTHON" main.py bench $SMALL --gpu "$GPU" --out "$WORK/$folder" "$@"
}

do_part() {
    case $1 in
        tests) marked tests "not compile" ;;
        compiled) marked compiled compile ;;
        layouts) bench layouts --size paper --layouts ;;
        paper|study) bench "$1" --size "$1" ;;
        training)
            limited 290 "$PYTHON" main.py train --source_name SimSource --target_name SimTarget --data_path "$SCENES" \
                --gpu "$GPU" $WIDTHS --save_path "$WORK/training" --run_name run --max_epoch $FEW &&
            limited 290 "$PYTHON" main.py --resume "$WORK/training/run" --max_epoch $MORE ;;
    esac
}

ALL=0
for PART in $PARTS; do
    rm -rf "${WORK:?}/$PART"
    mkdir "$WORK/$PART"
    START=$(date +%s)
    do_part "$PART" >"$WORK/$PART.log" 2>&1
    CODE=$?
    PYTHONPATH=. "$PYTHON" tests/gpu_report.py "$OUT" "$PART" "$CODE" "$(($(date +%s) - START))" "$GPU" || CODE=1
    [ "$CODE" -eq 0 ] || ALL=1
done
exit $ALL
