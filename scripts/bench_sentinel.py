"""A check by `quorate sentinel` beside one by the shell loop that it replaces, on one pending node of a real cluster; scripts/bench calls it.

usage: bench_sentinel.py QUORATE HOST CHECKS; HOST is the example sentinel_host.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from measure import MIB, row, whole

quorate, host, checks = sys.argv[1], sys.argv[2], int(sys.argv[3])

# The loop in its own words: every 300 s, while the host wants a reboot, three questions; each is a kubectl.
LOOP = r"""
ready() {
  ! kubectl get nodes -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' | grep -qv '^True$'
}
network() {
  ! kubectl -n kube-system get pods -l k8s-app=cilium -o 'jsonpath={range .items[*]}{.status.phase}{"\n"}{end}' | grep -qv '^Running$'
}
quiet() {
  local now since
  now=$(date +%s)
  for since in $(kubectl get nodes -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].lastTransitionTime}{"\n"}{end}'); do
    [ $((now - $(date -d "$since" +%s))) -ge 86400 ] || return 1
  done
}
for _ in $(seq "$CHECKS"); do
  if [ -e "$HOST/var/run/reboot-required" ] && ready && network && quiet; then
    touch "$HOST/var/run/gated-reboot-required"
  else
    rm -f "$HOST/var/run/gated-reboot-required"
  fi
  sleep "$PAUSE"
done
"""


class Audit:
    """The requests that reach the apiservers."""

    def __init__(self, files):
        self.files = files
        self.read = [os.path.getsize(file) for file in files]

    def new(self):
        """Those since the last call."""
        events = []
        for at, file in enumerate(self.files):
            with open(file, "rb") as log:
                log.seek(self.read[at])
                lines = log.read()
            whole_lines = lines[: lines.rfind(b"\n") + 1]
            self.read[at] += len(whole_lines)
            events += [json.loads(line) for line in whole_lines.splitlines()]
        return events


def everywhere(events):
    return sum(1 for event in events if event["verb"] == "list" and event.get("objectRef", {}).get("resource") == "pods"
               and "namespace" not in event["objectRef"])


def cpu(pid):
    """Seconds of CPU that all threads of a process have had, from the scheduler: clock ticks are too coarse."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as file:
            total += int(file.read().split()[0])
    return total / 1e9


def memory(pid):
    """Bytes: anonymous now, and resident at most."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024


def cut(pid):
    """Ends the connections of a process: 300 s apart, none of a check would be there at the next one."""
    for line in subprocess.run(["ss", "-tnpH"], check=True, capture_output=True, text=True).stdout.splitlines():
        if f"pid={pid}," in line:
            local = line.split()[3].rsplit(":", 1)
            subprocess.run(["ss", "-K", "src", local[0], "sport", "=", local[1]], check=True, capture_output=True)


def sentinel(there, config, wanted, last):
    """Runs one until it has looked `wanted` times, each over fresh connections; CPU, memory and requests of those looks. `last` is what of an
    audit event says that a look is over."""
    folder = tempfile.mkdtemp(dir=there["host"])
    with open(f"{folder}/config.yaml", "w") as file:
        file.write(config)
    environment = {"QUORATE_NODE_NAME": there["node"], "QUORATE_POD_NAME": "sentinel", "QUORATE_POD_UID": "uid", "QUORATE_LOG": "info,kube_client=off"}
    command = [quorate, f"--kubeconfig={there['kubeconfig']}", f"--config={folder}/config.yaml", "sentinel", "run", f"--host={there['host']}",
               f"--kubernetes-dir={there['kubernetesDir']}", f"--listen={there['address']}:9476"]
    audit = Audit(there["audits"])
    with open(f"{folder}/log", "w+") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        looked, began, requests, anonymous = 0, None, [], 0
        deadline = time.monotonic() + 60 + 5 * wanted
        while looked < wanted + 3:
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                sys.exit(f"error: the sentinel did not look {wanted} times:\n{log.read()}")
            time.sleep(0.02)
            anonymous = max(anonymous, memory(process.pid)[0])
            own = [event for event in audit.new() if event["user"]["username"] == "system:serviceaccount:quorate:quorate-sentinel"]
            requests += own
            over = sum(1 for event in own if last(event))
            if over:
                looked += over
                time.sleep(0.1)  # its answer is read, and what follows of it
                if looked >= 3 and began is None:  # the first ones read the configuration, and ask for rights
                    began, requests, looked = cpu(process.pid), [], 3
                cut(process.pid)
        used = cpu(process.pid) - began
        anonymous, resident = max(anonymous, memory(process.pid)[0]), memory(process.pid)[1]
        metrics = urllib.request.urlopen(f"http://{there['address']}:9476/metrics").read().decode()
        process.send_signal(signal.SIGTERM)
        log.seek(0)
        said = log.read()
    if "quorate_sentinel_open 0" not in metrics:
        sys.exit(f"error: the gate was open; nothing is compared:\n{said}")
    return {"cpu": used / wanted, "anonymous": anonymous, "resident": resident, "requests": len(requests) / wanted,
            "everywhere": everywhere(requests), "said": said}


with subprocess.Popen([host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
    there = json.loads(process.stdout.readline())
    TIMES = "sentinel: {interval: 1s, watch: 1s, soak: %s}\n"

    def of(resource, verb="list"):
        return lambda event: event["verb"] == verb and event.get("objectRef", {}).get("resource") == resource

    pending = sentinel(there, TIMES % "24h", checks, of("daemonsets"))
    if "S013-soak" not in pending["said"]:
        sys.exit(f"error: its gate is closed for another reason:\n{pending['said']}")

    full = sentinel(there, TIMES % "0s", max(checks // 4, 5), of("configmaps", "patch"))
    if "kill-switch-engaged" not in full["said"]:
        sys.exit(f"error: etcd was not asked:\n{full['said']}")

    os.environ.update(KUBECONFIG=there["kubeconfig"], HOST=there["host"], CHECKS=str(checks), PAUSE="0",
                      PATH=f"{os.path.dirname(there['kubectl'])}:{os.environ['PATH']}", KUBECACHEDIR=there["cache"])
    os.environ["CHECKS"] = "1"
    whole(["bash", "-c", LOOP])  # fills kubectl's cache
    audit = Audit(there["audits"])
    os.environ["CHECKS"] = str(checks)
    loop = whole(["bash", "-c", LOOP])
    asked = [event for event in audit.new() if event.get("userAgent", "").startswith("kubectl/")]
    process.stdin.close()


def goal(what, value, limit, unit):
    print(f"{what:<28} {value:6.1f} {unit}   goal <= {limit:g} {unit}: {'met' if value <= limit else 'MISSED'}")


print(f"one check of a pending node, three control plane nodes; mean of {checks} checks, in one run of this script, on this host")
print("quorate: quorate sentinel run, every check over fresh connections, as 300 s apart")
print("beside:  the shell loop that it replaces: three kubectl a check\n")
print(f"{'':<28} quorate / loop")
theirs = loop.cpu / checks
print(row("CPU, user + system", pending["cpu"], theirs, 0.05), f"  ({pending['cpu'] * 1000:.1f} ms / {theirs * 1000:.0f} ms)")
print(row("peak memory, resident", pending["resident"], loop.resident),
      f"  ({pending['resident'] / MIB:.1f} MiB / {loop.resident / MIB:.1f} MiB, one kubectl)")
print(row("requests", pending["requests"], len(asked) / checks), f"  ({pending['requests']:.1f} / {len(asked) / checks:.1f})")
print(f"once nothing cheaper says no, a check asks etcd and every apiserver: {full['cpu'] * 1000:.1f} ms, {full['requests']:.1f} requests")
goal("memory, anonymous", pending["anonymous"] / MIB, 6, "MiB")
goal("memory, resident", pending["resident"] / MIB, 14, "MiB")
goal("anonymous, etcd asked", full["anonymous"] / MIB, 6, "MiB")
goal("resident, etcd asked", full["resident"] / MIB, 14, "MiB")
goal("lists of all pods", pending["everywhere"] + full["everywhere"], 0, "")
