"""A drain by quorate beside `kubectl drain`, of the same pods, by turns; scripts/bench calls it in the client's network."""

import json
import os
import statistics
import subprocess
import sys

from measure import MIB, row, whole

drain, runs = sys.argv[1], int(sys.argv[2])
KUBECONFIG = os.environ["KUBECONFIG"]
PODS = 40
DEPLOYMENT = """
apiVersion: v1
kind: Namespace
metadata: {name: bench}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: bench, namespace: bench}
spec:
  replicas: %d
  selector: {matchLabels: {app: bench}}
  template:
    metadata: {labels: {app: bench}}
    spec:
      nodeSelector: {kubernetes.io/hostname: %s}
      terminationGracePeriodSeconds: 1
      containers: [{name: pause, image: "registry.k8s.io/pause:3.10.2", imagePullPolicy: Never}]
"""


def kubectl(*words, **options):
    return subprocess.run(["kubectl", *words], check=True, capture_output=True, text=True, **options).stdout


workers = json.loads(kubectl("get", "nodes", "-l", "!node-role.kubernetes.io/control-plane", "-o", "json"))["items"]
if not workers:
    sys.exit("error: this cluster has no worker to drain: `make demo-down`, and run it again")
node = workers[0]["metadata"]["name"]
OURS = [drain, "drain", node, KUBECONFIG]
THEIRS = ["kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"]
BACK = {"ours": [drain, "uncordon", node, KUBECONFIG], "theirs": ["kubectl", "uncordon", node]}

kubectl("apply", "-f", "-", input=DEPLOYMENT % (PODS, node))
measured = {"ours": [], "theirs": []}
try:
    # The first of each is not counted.
    for turn in range(runs + 1):
        for whose, command in (("ours", OURS), ("theirs", THEIRS)):
            kubectl("-n", "bench", "rollout", "status", "deployment/bench", "--timeout=300s")
            run = whole(command)
            left = kubectl("-n", "bench", "get", "pods", "--field-selector", f"spec.nodeName={node}", "-o", "name")
            if left:
                sys.exit(f"error: {whose}: pods are on {node} after the drain:\n{left}")
            whole(BACK[whose])
            if turn > 0:
                measured[whose].append(run)
finally:
    kubectl("uncordon", node)
    kubectl("delete", "namespace", "bench")


def median(whose, what):
    return statistics.median(getattr(run, what) for run in measured[whose])


def peak(whose, what):
    return max(getattr(run, what) for run in measured[whose])


print(f"a drain of {PODS} pods that stop at once; median of {runs} drains by turns, on this host")
print("quorate: cordon and drain as a step of an upgrade does, without its rehearsal")
print("beside:  kubectl drain --ignore-daemonsets --delete-emptydir-data\n")
print(f"{'':<28} quorate / kubectl drain")
ours, theirs = median("ours", "wall"), median("theirs", "wall")
print(row("wall time", ours, theirs, 1), f"  ({ours:.1f} s / {theirs:.1f} s)")
ours, theirs = median("ours", "cpu"), median("theirs", "cpu")
print(row("CPU, user + system", ours, theirs), f"  ({ours * 1000:.0f} ms / {theirs * 1000:.0f} ms)")
ours, theirs = peak("ours", "anonymous"), peak("theirs", "anonymous")
print(row("peak memory, anonymous", ours, theirs), f"  ({ours / MIB:.1f} MiB / {theirs / MIB:.1f} MiB; goal <= 16 MiB: "
      f"{'met' if ours <= 16 * MIB else 'MISSED'})")
