"""Guards around a model that answers: filters of requests, changed requests, and a reminder. The model itself is not trained."""
