"""The measurements of `make bench`; scripts/bench calls it inside k1's namespaces."""

import json
import shlex
import subprocess
import sys

from measure import MIB, once, row, whole

scratch, quorate, tools, runs = sys.argv[1:5]
SAMPLING = 1.0  # seconds between the two samples of an observation, as scratch/config.yaml says
PKI = "/etc/kubernetes/pki/etcd"
MEMBERS = ",".join(f"https://10.10.0.1{number}:2379" for number in (1, 2, 3))

OURS = [quorate, "gate", "--here", "--node", "k2", "--config", f"{scratch}/config.yaml", "--output", "json"]
ETCDCTL = [f"{tools}/etcdctl", f"--endpoints={MEMBERS}", f"--cacert={PKI}/ca.crt", f"--cert={PKI}/healthcheck-client.crt",
           f"--key={PKI}/healthcheck-client.key", "endpoint", "status"]
KUBECTL = [f"{tools}/kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", f"--cache-dir={scratch}/cache", "get", "nodes"]


def wall(name, command):
    out = f"{scratch}/{name}.json"
    subprocess.run(["hyperfine", "-N", "--warmup=2", f"--runs={runs}", f"--export-json={out}", "--style=none", command],
                   check=True, stdout=subprocess.DEVNULL)
    with open(out) as file:
        result = json.load(file)["results"][0]
    return result["median"], result["user"] + result["system"]


# A permit needs every fact to be known: an observation that is cheap because it saw little is not measured.
for command in (OURS, ETCDCTL, KUBECTL):
    whole(command)

our_wall, our_cpu = wall("ours", shlex.join(OURS))
pair = shlex.join(["sh", "-c", f"{shlex.join(ETCDCTL)} && {shlex.join(KUBECTL)}"])
their_wall, their_cpu = wall("theirs", pair)
our_wall -= SAMPLING
ours = [once(OURS) for _ in range(int(runs))]
our_peak, our_anonymous = max(run.resident for run in ours), max(run.anonymous for run in ours)
theirs = [once(command) for command in (ETCDCTL, KUBECTL) for _ in range(3)]
their_peak, their_anonymous = max(run.resident for run in theirs), max(run.anonymous for run in theirs)

print(f"one observation of three TLS members and the API; median of {runs} runs, in one run of this script, on this host")
print(f"quorate: {shlex.join(['quorate', *OURS[1:5]])}, without the {SAMPLING:g} s between its two samples")
print("beside:  etcdctl endpoint status (three endpoints), then kubectl get nodes\n")
print(f"{'':<28} quorate / etcdctl + kubectl")
print(row("wall time", our_wall, their_wall, 1), f"  ({our_wall * 1000:.0f} ms / {their_wall * 1000:.0f} ms)")
print(row("CPU, user + system", our_cpu, their_cpu, 0.2), f"  ({our_cpu * 1000:.0f} ms / {their_cpu * 1000:.0f} ms)")
print(row("peak memory, resident", our_peak, their_peak), f"  ({our_peak / MIB:.1f} MiB / {their_peak / MIB:.1f} MiB, the larger of the two)")
print(row("peak memory, anonymous", our_anonymous, their_anonymous),
      f"  ({our_anonymous / MIB:.1f} MiB / {their_anonymous / MIB:.1f} MiB; goal <= 16 MiB: "
      f"{'met' if our_anonymous <= 16 * MIB else 'MISSED'})")
