#!/usr/bin/env bash
# The curl commands of the stream registry plan ("document 4"), as they stand, port aside, against a running server:
#
#   holdfast demo &   examples/document4.sh [port]
#
# curl sends a form content type where no -H says otherwise, any Bearer is accepted on loopback, and `prompt` stands
# for one user message. Exits with 1 if something hangs or an answer is missing. The answers stay in $OUT.
set -u

PORT=${1:-8484}
OUT=${OUT:-$(mktemp -d)}
URL=http://localhost:$PORT/v1/chat/completions
# With a rehearsal model these prompts script it: long enough to be superseded, and to be left after two seconds.
POEM=${POEM:-Write a very long poem}
ESSAY=${ESSAY:-Write a 10 paragraph essay}
failed=0

check() { # what, then a command
  local what=$1
  shift
  if "$@"; then echo "ok      $what"; else
    echo "FAILED  $what"
    failed=1
  fi
}

within() { # seconds since $began
  awk -v began="$began" -v now="$(date +%s.%N)" -v most="$1" 'BEGIN { exit !(now - began < most) }'
}

ends() { grep -q '^data: \[DONE\]' "$1"; }

echo "== Test 1: normal streaming"
curl -sS -X POST "$URL" \
  -H "Authorization: Bearer devkey" \
  -H "Content-Type: application/json" \
  -d '{"prompt":"Hello","stream":true}' \
  > "$OUT/1.txt"
head -20 "$OUT/1.txt" > /dev/null
check "it answers and ends" ends "$OUT/1.txt"

echo "== Test 2: the user stops the stream"
curl -sS -X POST "$URL" \
  -H "Authorization: Bearer devkey" \
  -d "{\"prompt\":\"$POEM\",\"stream\":true}" > "$OUT/2.txt" &
PID=$!
sleep 2 && kill $PID 2> /dev/null
wait $PID 2> /dev/null
check "it had begun" grep -q '^data: ' "$OUT/2.txt"

echo "== Test 3: rapid new requests (the critical test)"
SESSION_ID="test-session-$(date +%s)"
curl -sS -X POST "$URL" \
  -H "Authorization: Bearer devkey" \
  -H "X-Session-Id: $SESSION_ID" \
  -H "Content-Type: application/json" \
  -d "{\"prompt\":\"$ESSAY\",\"stream\":true}" > "$OUT/a.txt" &
A_PID=$!
sleep 0.1
began=$(date +%s.%N)
curl -sS -X POST "$URL" \
  -H "Authorization: Bearer devkey" \
  -H "X-Session-Id: $SESSION_ID" \
  -H "Content-Type: application/json" \
  -d '{"prompt":"What is 2+2?","stream":true}' > "$OUT/b.txt"
wait $A_PID 2> /dev/null
check "nothing hangs" within "${WITHIN:-60}"
check "A was told that it is superseded" grep -q '"code":"superseded"' "$OUT/a.txt"
check "B answers" grep -q '"finish_reason":"stop"' "$OUT/b.txt"

echo "== Test 4: five requests, 50 ms apart"
for i in {1..5}; do
  curl -sS -X POST "$URL" \
    -H "Authorization: Bearer devkey" \
    -H "Content-Type: application/json" \
    -d "{\"prompt\":\"Prompt $i\",\"stream\":true}" \
    --max-time 3 \
    > "$OUT/resp_$i.txt" &
  sleep 0.05
done
wait
for i in {1..5}; do
  check "response $i: $(wc -c < "$OUT/resp_$i.txt") bytes" ends "$OUT/resp_$i.txt"
done

echo "== Test 5: two sessions"
SESSION1="session-1-$$"
SESSION2="session-2-$$"
curl -sS -X POST "$URL" \
  -H "X-Session-Id: $SESSION1" \
  -H "Content-Type: application/json" \
  -d '{"prompt":"Session 1 Prompt A","stream":true}' > "$OUT/s1_a.txt" &
curl -sS -X POST "$URL" \
  -H "X-Session-Id: $SESSION2" \
  -H "Content-Type: application/json" \
  -d '{"prompt":"Session 2 Prompt A","stream":true}' > "$OUT/s2_a.txt" &
sleep 0.1
curl -sS -X POST "$URL" \
  -H "X-Session-Id: $SESSION1" \
  -H "Content-Type: application/json" \
  -d '{"prompt":"Session 1 Prompt B","stream":true}' > "$OUT/s1_b.txt"
wait
check "session 1 goes on with B" grep -q '"finish_reason":"stop"' "$OUT/s1_b.txt"
check "session 2 is untouched" grep -q '"finish_reason":"stop"' "$OUT/s2_a.txt"

exit $failed
