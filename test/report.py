#!/usr/bin/env python3
"""report.py [--failures] FILE...: reads `go test -json` streams.

With --failures it prints what the failed tests said. Without, it names every
skipped test with its reason and closes with the counts of all files together.
"""
import json
import sys

args = [a for a in sys.argv[1:] if "*" not in a]
failures = args[:1] == ["--failures"]
passed = failed = skipped = 0
skips = []
for name in args[1:] if failures else args:
    output, packages, ended = {}, {}, set()
    for line in open(name, encoding="utf-8", errors="replace"):
        try:
            e = json.loads(line)
        except ValueError:
            print(line, end="")
            continue
        key = (e.get("Package", e.get("ImportPath", "")), e.get("Test"))
        action = e["Action"]
        if action in ("pass", "fail", "skip"):
            ended.add(key)
        if action in ("output", "build-output"):
            output.setdefault(key, []).append(e["Output"])
        elif key[1] is None:
            if action == "fail" or action == "build-fail":
                packages[key[0]] = e.get("Elapsed", 0)
                if failures:
                    # What was said by tests that never ended, if the process did.
                    for (package, test), said in output.items():
                        if package == key[0] and test and (package, test) not in ended:
                            print(f"{test} did not end:\n", "".join(said[-60:]), sep="")
                    print("".join(output.get(key, [])[-60:]))
            elif action == "pass" and failures:
                print(f"ok    {key[0]}  {e.get('Elapsed', 0):.1f}s")
        elif action == "pass":
            passed += 1
        elif action == "fail":
            failed += 1
            if failures:
                print("".join(output.get(key, [])[-200:]))
        elif action == "skip":
            skipped += 1
            said = [l.strip() for l in output.get(key, []) if not l.startswith(("=== ", "--- "))]
            skips.append(f"{key[0].rsplit('/coracle/', 1)[-1]} {key[1]}: {' '.join(said)[:200]}")
    if packages and not failed:
        failed += len(packages)
if not failures:
    for s in skips:
        print("skipped", s)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
