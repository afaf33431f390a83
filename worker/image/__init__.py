"""Images: untrusted files, checked and decoded in a separate process."""
