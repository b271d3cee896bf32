"""A campaign as a user runs it: the layer above campaigns, report and tracking."""
