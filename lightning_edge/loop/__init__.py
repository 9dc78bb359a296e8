"""What Lightning's loops need of us, part by part: starting, data, logs, checkpoints."""
