"""Make PyTorch models sparse so that they really get smaller and faster, and prove it."""
