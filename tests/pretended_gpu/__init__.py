"""A GPU that is pretended on a CPU: finds operations over two devices, host waits and blocking copies."""
