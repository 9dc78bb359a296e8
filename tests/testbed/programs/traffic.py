"""Each device sends to the rank named for it in argv (`1-0-`: 0 to 1, 1 to 0, 2 to nobody) for
argv[2] seconds; each receiver prints `from <rank> <Mbit/s>` over the time after the first 0.5 s."""

import os
import socket
import sys
import threading
import time

PORT, SKIP_S = 7000, 0.5
targets = sys.argv[1].split("-")
duration_s = float(sys.argv[2])
rank = int(os.environ["RANK"])
network = os.environ["MASTER_ADDR"].rpartition(".")[0]


def receive(sender: int, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    buffer, got, first_s, last_s, start_s = bytearray(1 << 16), 0, None, 0.0, time.monotonic()
    while size := connection.recv_into(buffer):
        now_s = time.monotonic()
        if now_s - start_s < SKIP_S:
            continue
        if first_s is None:
            first_s = now_s
            continue  # what came before belongs to the time before
        got, last_s = got + size, now_s
    connection.close()
    listener.close()
    print(f"from {sender} {got * 8e-6 / (last_s - first_s):.3f}", flush=True)


def send(target: str) -> None:
    for _ in range(200):
        try:
            connection = socket.create_connection((f"{network}.{int(target) + 1}", PORT + rank), 5)
            break
        except OSError:
            time.sleep(0.02)
    with connection:
        connection.settimeout(None)
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            connection.sendall(bytes(1 << 14))


threads = []
for sender, target in enumerate(targets):
    if target == str(rank):
        listener = socket.create_server(("", PORT + sender))
        threads.append(threading.Thread(target=receive, args=(sender, listener)))
if targets[rank]:
    threads.append(threading.Thread(target=send, args=(targets[rank],)))
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
