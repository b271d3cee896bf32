"""The plan: a campaign's cells, what each stands on, why it is done again, and how long it will take."""
