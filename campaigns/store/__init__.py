"""The store: finished cells as folders, named by what their numbers depend on. STORE.md tells the design."""
