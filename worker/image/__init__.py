"""Images: strangers' files, checked and decoded in a process of their own."""
