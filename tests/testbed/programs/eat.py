"""Takes memory, one MiB after the other, and prints how many it has."""

held = []
for count in range(1, 4096):
    held.append(bytearray(b"x") * (1 << 20))
    if count % 4 == 0:
        print(count, flush=True)
