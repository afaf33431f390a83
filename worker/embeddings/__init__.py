"""Images that were encoded before: their embeddings, and what else a job needs to know of them."""
