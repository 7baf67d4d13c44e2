"""The life of a request, from the transaction that takes it in to the confirmed reply."""
