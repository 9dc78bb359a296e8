"""Each device sends to the rank named for it in argv[1] for argv[2] seconds.

`1-0-` means 0 to 1, 1 to 0, 2 to nobody. Each receiver prints `from <rank> <Mbit/s>`: everything
over the whole time, so that neither full buffers nor a reader that comes late count too much.
"""

import os
import socket
import sys
import threading
import time

PORT = 7000
targets = sys.argv[1].split("-")
duration_s = float(sys.argv[2])
rank = int(os.environ["RANK"])
network = os.environ["MASTER_ADDR"].rpartition(".")[0]


def receive(sender: int, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    buffer, got, start_s = bytearray(1 << 16), 0, time.monotonic()
    while size := connection.recv_into(buffer):
        got += size
    print(f"from {sender} {got * 8e-6 / (time.monotonic() - start_s):.3f}", flush=True)
    connection.close()
    listener.close()


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
