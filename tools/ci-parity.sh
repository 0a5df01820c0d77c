#!/usr/bin/env bash
# Export a bundle, or take one that is there, and verify it: for CI systems. `action.yml` runs this file on GitHub.
#
#   SAMEXPORT_EXPORT='onnx --encoder tinyvit' tools/ci-parity.sh    # export, then verify what was written
#   SAMEXPORT_BUNDLE=models/mobilesam tools/ci-parity.sh            # verify a bundle of the repository
#
# Everything comes from the environment, so that no CI system has to quote it for a shell:
#   SAMEXPORT_EXPORT   arguments of samexport that write a bundle, without --out; words, no quotes inside
#   SAMEXPORT_BUNDLE   the bundle's folder, written or read; default samexport-bundle
#   SAMEXPORT_VERIFY   more arguments of `samexport verify`, such as --runtime or --against
#   SAMEXPORT_REPORT   the Markdown report; default samexport-parity.md
#   SAMEXPORT_CACHE    where weights are downloaded to: let your CI keep this folder
#
# The report is written whatever the verdict, and is added to GitHub's summary of the job where there is one.
# Exit codes are samexport's: 0 verified, 1 a check failed, 2 something cannot be used.
set -euo pipefail

bundle=${SAMEXPORT_BUNDLE:-samexport-bundle}
report=${SAMEXPORT_REPORT:-samexport-parity.md}
read -ra export_arguments <<<"${SAMEXPORT_EXPORT:-}"
read -ra verify_arguments <<<"${SAMEXPORT_VERIFY:-}"

if ((${#export_arguments[@]})); then
    samexport "${export_arguments[@]}" --out "$bundle" --force
fi

verdict=0
rm -f -- "$report"
samexport verify "$bundle" --report "$report" ${verify_arguments[@]+"${verify_arguments[@]}"} || verdict=$?
if [ -n "${GITHUB_STEP_SUMMARY:-}" ] && [ -f "$report" ]; then
    cat -- "$report" >>"$GITHUB_STEP_SUMMARY"
fi
exit "$verdict"
