"""A backup with its verification beside `etcdctl snapshot save`, then `etcdutl snapshot status`, of one real member; scripts/bench calls it.

usage: bench_backup.py QUORATE HOST MEGABYTES RUNS; HOST is the example backup_host.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

from measure import MIB, row, whole

quorate, host, megabytes, runs = sys.argv[1:5]

with subprocess.Popen([host, megabytes], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
    there = json.loads(process.stdout.readline())
    scratch = tempfile.mkdtemp()
    store, state, saved = f"{scratch}/store", f"{scratch}/state", f"{scratch}/saved.db"
    os.mkdir(store)
    with open(f"{scratch}/config.yaml", "w") as file:
        file.write("backup: {compression: none}\ntimes: {betweenSamples: 1s}\n")
    pki = there["pki"]
    save = [there["etcdctl"], f"--endpoints={there['endpoint']}", f"--cacert={pki}/ca.crt", f"--cert={pki}/healthcheck-client.crt",
            f"--key={pki}/healthcheck-client.key", "--command-timeout=600s", "snapshot", "save", saved]
    status = [there["etcdutl"], "snapshot", "status", saved]
    ours = [quorate, "etcd", "backup", "--here", f"--to={store}", f"--kubernetes-dir={there['folder']}", f"--state-dir={state}",
            f"--config={scratch}/config.yaml", "--output=json"]
    SAMPLING = 1.0  # seconds between the two samples of the observation

    def fresh():
        """Nothing of the run before is left, on either side, nor waits for the disk."""
        shutil.rmtree(store)
        os.mkdir(store)
        if os.path.exists(saved):
            os.remove(saved)
        os.sync()

    took = {"save": [], "status": [], "ours": [], "verify": []}
    anonymous = {"ours": 0, "verify": 0}
    for number in range(int(runs) + 1):
        fresh()
        one = [("save", whole(save)), ("status", whole(status))]
        fresh()
        one.append(("ours", whole(ours)))
        stored = next(name for name in os.listdir(store) if name.endswith(".db"))
        one.append(("verify", whole([quorate, "etcd", "verify", f"{store}/{stored}"])))
        for name, run in one[: 4 if number else 0]:  # the first one warms up
            took[name].append(run.wall)
            if name in anonymous:
                anonymous[name] = max(anonymous[name], run.anonymous)
    process.stdin.close()
    shutil.rmtree(scratch)

median = {name: statistics.median(times) for name, times in took.items()}
backup = median["ours"] - SAMPLING
print(f"one backup of {megabytes} MB, proven, into a folder; median of {runs} runs, in turns, in one run of this script, on this host")
print(f"quorate: quorate etcd backup --here, without the {SAMPLING:g} s between its two samples of the members")
print("beside:  etcdctl snapshot save; etcdutl snapshot status\n")
print(f"{'':<28} quorate / etcdctl, etcdutl")
print(row("backup / save", backup, median["save"], 1.2), f"  ({backup:.2f} s / {median['save']:.2f} s)")
both = median["save"] + median["status"]
print(row("backup / save + status", backup, both, 1), f"  ({backup:.2f} s / {both:.2f} s)")
print(row("verify / status", median["verify"], median["status"], 1), f"  ({median['verify']:.2f} s / {median['status']:.2f} s)")
for name, what in (("ours", "backup"), ("verify", "verify")):
    met = "met" if anonymous[name] <= 32 * MIB else "MISSED"
    print(f"{what}: peak memory, anonymous {anonymous[name] / MIB:.1f} MiB   goal <= 32 MiB: {met}")
