#!/usr/bin/env python3
"""Cycles per packet of one simplon worker on net_pcap and net_null, beside testpmd on the same ports.

Needs root (EAL), Debian's dpdk package, and a release build. Prints Markdown. See docs/BENCHMARKING.md.

Two ways of counting, both in TSC cycles:
- "thread": the polling thread's own run time (/proc schedstat) over the packets of the same span (DPDK telemetry),
  so that sharing the core with others cancels out. The same for simplon and testpmd.
- "stages": what simplon's workers measure between stages (`run --measure-stages`).
Sealing loops over a capture (infinite_rx). Opening cannot: the anti-replay window refuses a second round. It reads a
long capture of rising sequence numbers, which sealing wrote, once.
"""

import argparse
import glob
import json
import os
import random
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import tempfile
import time

IMIX = [46] * 7 + [552] * 4 + [1500]
SIZES = [64, 576, "imix", 1420]
# Packets in the capture that is opened: enough to last, little enough for the page cache.
OPEN_PACKETS = {64: 600_000, 576: 200_000, "imix": 240_000, 1420: 100_000}
# Those of the loop that is sealed; of IMIX whole rounds, too many for a branch predictor to learn.
LOOP_PACKETS = {64: 256, 576: 256, "imix": 768, 1420: 256}
PCAP_MAC = bytes.fromhex("027063617000")
HOST_MAC = bytes.fromhex("020000000010")


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def inner_frame(size):
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size, 0, 0x4000, 64, 17, 0, bytes([10, 1, 0, 10]), bytes([10, 2, 0, 10]))
    ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    udp = struct.pack(">HHHH", 4000, 9, size - 20, 0)
    payload = bytes((i * 7) & 0xFF for i in range(size - 28))
    return PCAP_MAC + HOST_MAC + b"\x08\x00" + ip + udp + payload


def write_pcap(path, size, count):
    """A capture of `count` inner frames of `size`; IMIX in an order without a pattern, the same every time."""
    sizes = [size] * count if size != "imix" else (IMIX * (count // len(IMIX) + 1))[:count]
    random.Random(1).shuffle(sizes)
    records = {}
    for each in set(sizes):
        frame = inner_frame(each)
        records[each] = struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame
    with open(path, "wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for each in sizes:
            out.write(records[each])


def title(size):
    return "IMIX" if size == "imix" else f"{size} B"


def policy(path, name, lan, wan, own, other, outbound, inbound, cores):
    text = f"""
[gateway]
name = "{name}"
workers = {cores}
state_dir = "{path}.state"
control_socket = "{path}.sock"
memory_mib = 512
lab_keys = true
[[port]]
host = false
name = "lan"
device = "{lan}"
side = "protected"
pair = "wan"
addresses = ["10.{own}.0.1/24"]
[[port]]
host = false
name = "wan"
device = "{wan}"
side = "unprotected"
pair = "lan"
mtu = 1600
addresses = ["192.0.2.{own}/24"]
[[neighbour]]
address = "10.{own}.0.10"
mac = "02:00:00:00:00:10"
port = "lan"
[[neighbour]]
address = "192.0.2.{other}"
mac = "02:70:63:61:70:00"
port = "wan"
[[tunnel]]
name = "bench"
local_networks = ["10.{own}.0.0/24"]
remote_networks = ["10.{other}.0.0/24"]
[[tunnel.endpoints]]
local = "192.0.2.{own}"
remote = "192.0.2.{other}"
[tunnel.endpoints.outbound]
spi = {outbound}
cipher = "aes-128-gcm"
key = {{ file = "{outbound}.key" }}
esn = false
[tunnel.endpoints.inbound]
spi = {inbound}
cipher = "aes-128-gcm"
key = {{ file = "{inbound}.key" }}
esn = false
"""
    with open(path, "w") as out:
        out.write(text)


def telemetry(prefix, command):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(f"/var/run/dpdk/{prefix}/dpdk_telemetry.v2")
        sock.recv(4096)
        sock.send(command.encode())
        return json.loads(sock.recv(65536))[command.split(",")[0]]


def thread_ns(pid, names):
    for task in glob.glob(f"/proc/{pid}/task/*"):
        with open(f"{task}/comm") as comm:
            if comm.read().strip() in names:
                with open(f"{task}/schedstat") as stat:
                    return int(stat.read().split()[0])
    raise RuntimeError(f"no polling thread called one of {names}")


def per_packet(pid, prefix, names, seconds, hz):
    """TSC cycles of the thread per packet received, over `seconds`."""
    start = time.time()
    while telemetry(prefix, "/ethdev/stats,0")["ipackets"] == 0:
        if time.time() - start > 20:
            raise RuntimeError("no packets")
        time.sleep(0.05)
    time.sleep(0.3)
    before = telemetry(prefix, "/ethdev/stats,0")["ipackets"], thread_ns(pid, names)
    time.sleep(seconds)
    after = telemetry(prefix, "/ethdev/stats,0")["ipackets"], thread_ns(pid, names)
    return (after[1] - before[1]) * hz / 1e9 / (after[0] - before[0])


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


class Bench:
    def __init__(self, simplon, seconds):
        self.simplon = simplon
        self.seconds = seconds
        self.dir = tempfile.mkdtemp(prefix="simplon-bench-")
        self.run_id = 0
        self.hz = 0
        for key in ("0x1001", "0x1002"):
            subprocess.run([simplon, "genkey", "--cipher", "aes-128-gcm", f"{self.dir}/{key}.key"], check=True, stderr=subprocess.DEVNULL)

    def start_simplon(self, lan, wan, east=False, stages=False, cores=(1,)):
        self.run_id += 1
        name = f"bench{self.run_id}"
        path = f"{self.dir}/{name}.toml"
        own, other = (2, 1) if east else (1, 2)
        keys = ("0x1002", "0x1001") if east else ("0x1001", "0x1002")
        cores = list(cores)
        policy(path, name, lan, wan, own, other, *keys, cores=cores)
        subprocess.run([self.simplon, "state", "init", "--config", path], check=True, stderr=subprocess.DEVNULL)
        command = [self.simplon, "run", "--config", path] + (["--measure-stages"] if stages else [])
        log = open(f"{path}.log", "w")
        process = subprocess.Popen(command, stderr=log)
        for _ in range(200):
            if process.poll() is not None:
                raise RuntimeError(open(f"{path}.log").read())
            if os.path.exists(f"{path}.sock"):
                break
            time.sleep(0.05)
        return process, name, path

    def show(self, path, what):
        for _ in range(100):
            done = subprocess.run([self.simplon, "show", what, "--json", "--socket", f"{path}.sock"], capture_output=True)
            if done.returncode == 0:
                return json.loads(done.stdout)
            time.sleep(0.1)
        raise RuntimeError(done.stderr.decode())

    def stages(self, path, expected=None):
        """Cycles per packet by stage; waits until `expected` packets have been received."""
        deadline = time.time() + 120
        while True:
            report = self.show(path, "workers")
            self.hz = report["tsc_hz"]
            worker = report["workers"][0]
            if worker.get("stages") and (expected is None or worker["packets"] >= expected):
                return {stage["stage"]: stage["cycles"] / worker["packets"] for stage in worker["stages"]}, worker["packets"]
            if time.time() > deadline:
                raise RuntimeError(f"only {worker['packets']} packets of {expected}")
            time.sleep(0.1)

    def seal(self, size):
        loop = f"{self.dir}/in{size}.pcap"
        if not os.path.exists(loop):
            write_pcap(loop, size, LOOP_PACKETS[size])
        ports = (f"net_pcap0,rx_pcap={loop},infinite_rx=1", "net_null1,no-rx=1")
        process, name, path = self.start_simplon(*ports)
        try:
            self.hz = self.show(path, "workers")["tsc_hz"]
            thread = per_packet(process.pid, name, {"worker-1"}, self.seconds, self.hz)
        finally:
            stop(process)
        process, name, path = self.start_simplon(*ports, stages=True)
        try:
            time.sleep(self.seconds)
            stages, _ = self.stages(path)
        finally:
            stop(process)
        return thread, stages

    def esp_capture(self, size):
        """A capture of ESP packets with rising numbers, sealed by simplon."""
        out = f"{self.dir}/esp{size}.pcap"
        if os.path.exists(out):
            return out
        once = f"{self.dir}/once{size}.pcap"
        write_pcap(once, size, OPEN_PACKETS[size])
        process, _, path = self.start_simplon(f"net_pcap1,rx_pcap={once},tx_pcap=/dev/null", f"net_pcap0,tx_pcap={out}", stages=True)
        try:
            self.stages(path, OPEN_PACKETS[size])
        finally:
            stop(process)
        os.unlink(once)
        return out

    def open(self, size):
        capture = self.esp_capture(size)
        # The opener has seen nothing yet: fresh state for each run.
        process, _, path = self.start_simplon("net_null1,no-rx=1", f"net_pcap0,rx_pcap={capture}", east=True, stages=True)
        try:
            stages, packets = self.stages(path, OPEN_PACKETS[size])
            drops = self.show(path, "drops")
            sent = drops["totals"]["inbound"]["sent"]
            if sent != packets:
                raise RuntimeError(f"opened {sent} of {packets}: {drops['drops']}")
        finally:
            stop(process)
        return stages

    def testpmd(self, size, mode):
        loop = f"{self.dir}/in{size}.pcap"
        self.run_id += 1
        prefix = f"bench{self.run_id}"
        command = [
            "dpdk-testpmd", "-l", "0,1", "--no-huge", "-m", "512", "--no-pci", "--iova-mode=va", f"--file-prefix={prefix}",
            "--log-level=3", "--vdev", f"net_pcap0,rx_pcap={loop},infinite_rx=1", "--vdev", "net_null1,no-rx=1",
            "--", "-i", f"--forward-mode={mode}", "--nb-cores=1", "--burst=64", "--total-num-mbufs=16384", "--auto-start",
        ]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(200):
                if os.path.exists(f"/var/run/dpdk/{prefix}/dpdk_telemetry.v2"):
                    break
                time.sleep(0.05)
            time.sleep(0.5)
            return per_packet(process.pid, prefix, {"rte-worker-1", "lcore-worker-1", "dpdk-worker1"}, self.seconds, self.hz)
        finally:
            stop(process)
            shutil.rmtree(f"/var/run/dpdk/{prefix}", ignore_errors=True)


    def workers(self, cores):
        """Packets a second, in millions, that so many workers seal with one SA: each has a queue of the same ports."""
        loop = f"{self.dir}/in64.pcap"
        if not os.path.exists(loop):
            write_pcap(loop, 64, LOOP_PACKETS[64])
        lan = "net_pcap0," + f"rx_pcap={loop}," * len(cores) + "infinite_rx=1"
        process, _, path = self.start_simplon(lan, "net_null1,no-rx=1", cores=cores)
        try:
            time.sleep(1)
            before, start = self.show(path, "workers")["workers"], time.monotonic()
            time.sleep(self.seconds)
            after, span = self.show(path, "workers")["workers"], time.monotonic() - start
            if self.show(path, "drops")["totals"]["outbound"]["dropped"]:
                raise RuntimeError("packets were dropped")
        finally:
            stop(process)
        return sum(b["packets"] - a["packets"] for a, b in zip(before, after)) / span / 1e6


def cell(values):
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def scaling(bench, repeat):
    try:
        pairs = [(bench.workers([1]), bench.workers([0, 1])) for _ in range(repeat)]
    finally:
        shutil.rmtree(bench.dir, ignore_errors=True)
    ratios = [two / one for one, two in pairs]
    for name, values in (("one worker", [one for one, _ in pairs]), ("two workers", [two for _, two in pairs])):
        print(f"{name}: {statistics.median(values):.2f} Mpps ({min(values):.2f}–{max(values):.2f})")
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simplon", default="target/release/simplon")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--scaling", action="store_true", help="one worker and two on one SA, instead of the table")
    args = parser.parse_args()
    bench = Bench(os.path.abspath(args.simplon), args.seconds)
    if args.scaling:
        scaling(bench, args.repeat)
        return
    results = {}
    try:
        for _ in range(args.repeat):
            # A and B side by side, so that a noisy minute hits all alike.
            for size in SIZES:
                thread, stages = bench.seal(size)
                results.setdefault(("seal thread", size), []).append(thread)
                results.setdefault(("seal", size), []).append(stages)
                results.setdefault(("open", size), []).append(bench.open(size))
                for mode in ("io", "mac"):
                    results.setdefault((f"testpmd {mode}", size), []).append(bench.testpmd(size, mode))
    finally:
        shutil.rmtree(bench.dir, ignore_errors=True)
    print(f"TSC {bench.hz / 1e6:.0f} MHz; medians of {args.repeat} (least–most), TSC cycles per packet\n")
    print("| | " + " | ".join(title(size) for size in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    for row in ("testpmd io", "testpmd mac", "seal thread"):
        print(f"| {row} | " + " | ".join(cell(results[row, size]) for size in SIZES) + " |")
    pairs = {size: zip(results["seal thread", size], results["testpmd io", size]) for size in SIZES}
    net = [cell([seal - io for seal, io in pairs[size]]) for size in SIZES]
    print("| **seal thread, net of testpmd io** | " + " | ".join(net) + " |")
    for direction in ("seal", "open"):
        for stage in results[direction, SIZES[0]][0]:
            cells = [cell([run[stage] for run in results[direction, size]]) for size in SIZES]
            print(f"| {direction}: {stage} | " + " | ".join(cells) + " |")
        sums = [cell([sum(run.values()) for run in results[direction, size]]) for size in SIZES]
        print(f"| **{direction}: all stages** | " + " | ".join(sums) + " |")


if __name__ == "__main__":
    main()
