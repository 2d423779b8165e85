#!/usr/bin/env python3
"""Throughput and memory of `rdpm serve` against `rdpm sample`, with the same batch.

    scripts/bench_serve.py [--rdpm target/release/rdpm] [--model builtin] [--rounds 5]

A round draws 32 images with `rdpm sample` in batches of 16 (its own count of seconds, without loading),
then 32 images of a warm server: 8 clients at once, 4 images each, another seed each, from the first
request to the last answer. On a busy machine the median of the rounds' ratios counts. Then 20 clients
send 200 requests of one image, of which the peak memory is printed. Needs Linux and nothing else.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

CLIENTS, EACH, BATCH = 8, 4, 16


class Server:
    def __init__(self, rdpm, model):
        line = [rdpm, "serve", "--model", model, "--port", "0", "--batch-size", str(BATCH)]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().strip().rstrip("/").rsplit(":", 1)[1])

    def draw(self, **body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("POST", "/v1/images", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    def memory(self, name):
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith(name)) / 1024


def at_once(count, work):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rdpm", default="target/release/rdpm")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    server = Server(args.rdpm, args.model)
    assert server.draw(**{"class": "index:0"}) == 200
    begun, count = server.memory("VmHWM"), CLIENTS * EACH
    ratios = []
    for i in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            line = [args.rdpm, "sample", "--quiet", "--json", "--model", args.model, "--class", "index:0",
                    "--num", str(count), "--batch-size", str(BATCH), "--seed", str(i), "--out", f"{folder}/a.npz"]
            sampled = json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout)["seconds"]
        statuses = []
        ask = lambda n: statuses.append(server.draw(**{"class": "index:0", "num": EACH, "seed": 100 * i + n}))
        served = at_once(CLIENTS, ask)
        assert statuses == [200] * CLIENTS, statuses
        ratios.append(sampled / served)
        print(f"round {i + 1}: {count} images: sample {sampled:.2f} s, serve {served:.2f} s, {ratios[-1]:.3f}x", flush=True)
    print(f"serve has {statistics.median(ratios):.3f}x the throughput of sample, median of {len(ratios)}")
    statuses, numbers = [], iter(range(200))
    lock = threading.Lock()

    def client(_):
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            statuses.append(server.draw(**{"class": f"index:{number % 7}", "seed": number}))

    seconds = at_once(20, client)
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    print(f"200 requests of 20 clients: {counts} in {seconds:.1f} s; peak memory {server.memory('VmHWM'):.0f} MiB, "
          f"{begun:.0f} MiB after the first image")
    server.process.terminate()
    assert server.process.wait(60) == 0


if __name__ == "__main__":
    main()
